// What a training run tells: a line for people with torchtitan's fields, one JSON row per logged
// step in metrics.jsonl, and the same numbers for TensorBoard.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "lm/model/phase_seconds.hpp"
#include "lm/train/tensorboard.hpp"

namespace smalltalk {

struct LogRow {
  int64_t step = 0;       // steps done
  int64_t num_steps = 0;  // of the whole schedule
  int64_t tokens = 0;     // targets trained on so far, over the group
  double loss = 0;        // mean over the interval and the group, nats per token
  double max_loss = 0;    // the highest of any rank in any step of the interval
  double gradient_norm = 0;
  double lr = 0;
  // What this process did of the interval: after a restart that is less than all of it.
  double seconds = 0;
  PhaseSeconds phases;  // of the rank that writes
  int64_t interval_steps = 0;
  int64_t interval_tokens = 0;  // over the group
  double interval_flops = 0;    // over the group
};

// A step whose loss or gradient norm lies far above those of the steps before it.
struct OutlierRow {
  int64_t step = 0;
  double loss = 0, gradient_norm = 0;                // of this step
  double loss_zscore = 0, gradient_norm_zscore = 0;  // among the steps before it
  bool skipped = false;                              // its update was left out
};

class TrainingLog {
 public:
  struct Options {
    std::string model;
    std::filesystem::path folder;  // of metrics.jsonl and tensorboard/; empty: no rows
    bool tensorboard = false;
    bool print = true;
    int group_size = 1;
    bool cuda = false;
    double flops_per_second = 0;  // of one device, for the MFU; more, once more was reached
  };
  explicit TrainingLog(Options options) : options_(std::move(options)) {}

  // Training goes on after `step`. The first call removes rows of later steps and a half-written
  // last line, so that each step appears once, and begins a file for TensorBoard.
  void start(int64_t step);
  void write(const LogRow& row);  // tells people how many outliers there were since the last one
  void write(const OutlierRow& row);

 private:
  void append(int64_t step, nlohmann::ordered_json row);

  Options options_;
  bool started_ = false;
  int64_t outliers_ = 0;  // not told yet
  bool outliers_skipped_ = false;
  std::optional<TensorBoardWriter> tensorboard_;
};

}  // namespace smalltalk
