// Runs whose jobs are disturbed: a tiny run stage by stage, copies of its folder to go back to, and
// what two runs must have in common.
#pragma once

#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <vector>

#include "job_runner.hpp"

namespace smalltalk {

using Files = std::map<std::string, std::string>;  // path in the run folder -> contents

inline bool has_ending(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() &&
         text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

// Never seen half-written under their names.
inline bool is_binary(const std::string& name) {
  return has_ending(name, ".h5") || has_ending(name, ".safetensors") ||
         has_ending(name, ".model") || has_ending(name, "config.json");
}

// A JSON text, or lines of them, without what depends on the clock or on how often a job was
// started.
inline std::string without_times(const std::string& text) {
  static const std::regex kTimes(
      "seconds|communication|changed|time.*|eta.*|memory.*|throughput.*|tflops|mfu.*");
  std::istringstream lines(nlohmann::json::accept(text) ? nlohmann::json::parse(text).dump()
                                                        : text);
  std::string cleaned;
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json kept;
    const auto row = nlohmann::json::parse(line, nullptr, false);
    if (row.is_discarded()) {  // the last one of a job that was stopped
      cleaned += line + "\n";
      continue;
    }
    for (const auto& [key, value] : row.items()) {
      if (!std::regex_match(key, kTimes)) kept[key] = value;
    }
    cleaned += kept.dump() + "\n";
  }
  return cleaned;
}

// All that was computed. Checkpoints come and go.
inline Files outputs_of(const std::filesystem::path& run) {
  static const std::set<std::string> kText = {"results.json", "routing.jsonl", "metrics.jsonl"};
  Files files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(run)) {
    const std::string name = entry.path().lexically_relative(run).string();
    const bool checkpoint =
        name.find("checkpoint") != std::string::npos ||
        (name.starts_with("routers/") && name.find("round-") != std::string::npos);
    if (!entry.is_regular_file() || checkpoint) continue;
    if (is_binary(name)) files[name] = read_text(entry.path());
    if (kText.contains(entry.path().filename())) {
      files[name] = without_times(read_text(entry.path()));
    }
  }
  return files;
}

// The names of files that are not the same in both, or in one alone.
inline std::vector<std::string> differences(const Files& a, const Files& b) {
  std::vector<std::string> names;
  for (const auto& [name, contents] : a) {
    if (!b.contains(name) || b.at(name) != contents) names.push_back(name);
  }
  for (const auto& [name, contents] : b) {
    if (!a.contains(name)) names.push_back(name);
  }
  return names;
}

inline std::vector<std::string> temporaries_in(const std::filesystem::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(run)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".tmp-")) names.push_back(entry.path().string());
  }
  return names;
}

class FaultTest : public JobTest {
 protected:
  void SetUp() override {
    write_corpus("train", 200);
    write_corpus("heldout", 30);
    write_experiment();
  }

  std::filesystem::path run() const { return folder_ / "run"; }
  std::string job(const std::string& name, const std::string& arguments = "") const {
    return name + " " + experiment().string() + " --out " + run().string() + settings_ + " " +
           arguments;
  }

  void keep_as(const std::string& state) const { copy(run(), folder_ / state); }
  void go_back_to(const std::string& state) const { copy(folder_ / state, run()); }

  // Small, so that a start takes no time.
  std::string settings_ =
      " --set mixture.experts=2 --set mixture.rounds=2 --set mixture.sequences_per_round=64"
      " --set expert.train_steps=8 --set expert.save_interval=4 --set expert.log_interval=4"
      " --set baselines.dense=false --set baselines.dense_large_batch=false"
      " --set baselines.random_shards=false --set device.flops_per_second=1e10";

 private:
  static void copy(const std::filesystem::path& from, const std::filesystem::path& to) {
    using std::filesystem::copy_options;
    std::filesystem::remove_all(to);
    if (!std::filesystem::exists(from)) return;
    std::filesystem::copy(from, to, copy_options::recursive | copy_options::copy_symlinks);
  }
};

}  // namespace smalltalk
