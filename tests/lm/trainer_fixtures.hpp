// A small training run, what goes wrong in it, and what it leaves behind: for the tests of Trainer.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fixtures.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {

inline TrainConfig small_training(int64_t steps) {
  TrainConfig config;
  config.steps = steps;
  config.batch_size = 8;
  config.warmup_steps = 2;
  config.log_interval = 3;
  config.save_interval = 0;
  return config;
}

// Whose losses are no numbers any more after a step.
inline TrainConfig diverging_training(int64_t steps) {
  TrainConfig config = small_training(steps);
  config.lr = 1e30;
  config.grad_clip = 0;
  config.lr_decay = Decay::constant;
  config.warmup_steps = 0;
  return config;
}

inline TrainOptions quiet(const std::filesystem::path& folder = {}) {
  TrainOptions options;
  options.name = "test";
  options.folder = folder;
  options.show_progress = false;
  return options;
}

inline std::map<std::string, std::vector<float>> weights(const Transformer& model) {
  std::map<std::string, std::vector<float>> result;
  for (const auto& [name, span] : model.parameters()) result[name].assign(span.begin(), span.end());
  return result;
}

inline std::vector<nlohmann::json> metrics(const std::filesystem::path& folder) {
  std::ifstream file(folder / "metrics.jsonl");
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(file, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

// Rows of one easy pattern, but noise in the steps named.
inline RowSource rows_with_noise(std::vector<int64_t> noisy_steps) {
  const RowSource noise = random_rows(13, 37);
  const auto read = [=](int64_t first, int64_t count, std::span<int64_t> tokens) {
    noise.read(first, count, tokens);
    if (std::ranges::count(noisy_steps, first / 8) > 0) return;
    for (int64_t i = 0; i < count * 13; ++i) {
      tokens[i] = (tokens[i / 13 * 13] % 2 + i % 13) % 37;  // counts from 0 or 1
    }
  };
  return {13, read};
}

inline std::vector<nlohmann::json> outliers(const std::filesystem::path& folder) {
  auto rows = metrics(folder);
  std::erase_if(rows, [](const auto& row) { return !row.contains("outlier/loss"); });
  return rows;
}

inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Rows of one kind, and rows that stop the run when they are read.
inline RowSource stopping_rows(const RowSource& rows, int64_t stop_at_row) {
  return {rows.row_tokens, [rows, stop_at_row](int64_t first, int64_t count, auto out) {
            if (first >= stop_at_row) watch_for_stop({{}, {}, now_seconds()});
            rows.read(first, count, out);
          }};
}

}  // namespace smalltalk
