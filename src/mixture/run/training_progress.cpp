#include "smalltalk/mixture/run/training_progress.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// The last object of a JSON-lines file that has the key; null if there is none. Lines may be
// broken.
json last_row(const fs::path& file, const std::string& key) {
  constexpr std::streamoff kTail = 1 << 16;  // metrics of a long training are large
  std::ifstream in(file, std::ios::binary | std::ios::ate);
  if (!in) return nullptr;
  in.seekg(std::max<std::streamoff>(0, in.tellg() - kTail));
  json last = nullptr;
  for (std::string line; std::getline(in, line);) {
    json row = json::parse(line, nullptr, false);
    if (row.is_object() && row.contains(key)) last = std::move(row);
  }
  return last;
}

template <class T>
std::optional<T> number(const json& row, const std::string& key) {
  const auto found = row.is_object() ? row.find(key) : row.end();
  if (found == row.end() || !found->is_number()) return std::nullopt;
  return found->get<T>();
}

double device_hours(const Experiment& experiment, const TrainUnit& unit, int64_t steps,
                    double tokens_per_second) {
  const int64_t tokens = steps * unit.train.batch_size * experiment.data.seq_length;
  return static_cast<double>(tokens) / tokens_per_second / 3600;
}

UnitProgress progress_of(const Run& run, const TrainUnit& unit) {
  UnitProgress progress;
  if (unit.train.steps > 0) progress.steps = unit.train.steps;
  const json row = last_row(run.layout.metrics(unit.name), "throughput(tps)");
  progress.step = number<int64_t>(row, "step");
  progress.loss = number<double>(row, "loss_metrics/global_avg_loss");
  progress.tokens_per_second = number<double>(row, "throughput(tps)");
  const TrainedMark mark = read_trained_mark(run.layout.trained_mark(unit.name));
  if (mark.steps) {
    progress.step = mark.steps;
    if (!progress.steps) progress.steps = mark.steps;
  }
  if (progress.steps && progress.tokens_per_second > 0.0) {
    const int64_t steps = std::max<int64_t>(0, *progress.steps - progress.step.value_or(0));
    progress.device_hours_left =
        device_hours(run.experiment, unit, steps, *progress.tokens_per_second);
  }
  return progress;
}

}  // namespace

std::map<std::string, UnitProgress> training_progress(const Run& run,
                                                      const std::vector<TrainUnit>& units) {
  std::map<std::string, UnitProgress> models;
  double sum = 0;
  int64_t known = 0;
  for (const TrainUnit& unit : units) models[unit.name] = progress_of(run, unit);
  for (const auto& [name, model] : models) {
    if (model.tokens_per_second > 0.0) sum += *model.tokens_per_second, ++known;
  }
  if (known == 0) return models;
  for (const TrainUnit& unit : units) {
    UnitProgress& model = models[unit.name];
    if (model.device_hours_left || !model.steps) continue;
    model.device_hours_left =
        device_hours(run.experiment, unit, *model.steps, sum / static_cast<double>(known));
  }
  return models;
}

std::optional<double> hours_left(const std::map<std::string, UnitProgress>& models) {
  double hours = 0;
  for (const auto& [name, model] : models) {
    if (!model.device_hours_left) return std::nullopt;
    hours += *model.device_hours_left;
  }
  return hours;
}

int64_t last_round(const RunLayout& layout) {
  return number<int64_t>(last_row(layout.routing_log(), "round"), "round").value_or(0);
}

}  // namespace smalltalk
