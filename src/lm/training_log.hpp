// What a training run tells: a line for people with torchtitan's fields, and one JSON row per
// logged step in metrics.jsonl.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace smalltalk {

struct LogRow {
  int64_t step = 0;       // steps done
  int64_t num_steps = 0;  // of the whole schedule
  int64_t tokens = 0;     // targets trained on so far, over the group
  double loss = 0;        // mean over the interval and the group, nats per token
  double max_loss = 0;    // of the rank with the highest mean over the interval
  double gradient_norm = 0;
  double lr = 0;
  double seconds = 0;       // of the interval
  double data_seconds = 0;  // of which waiting for tokens
  int64_t interval_steps = 0;
  int64_t interval_tokens = 0;  // over the group
  double interval_flops = 0;    // over the group
};

class TrainingLog {
 public:
  // `file` empty: no rows. flops_per_second: of one device, for the MFU.
  TrainingLog(std::string model, std::filesystem::path file, int group_size, bool cuda,
              double flops_per_second)
      : model_(std::move(model)),
        file_(std::move(file)),
        group_size_(group_size),
        cuda_(cuda),
        flops_per_second_(flops_per_second) {}

  // Removes rows of steps beyond `step`, and a half-written last line: after a resumption each
  // step then appears once.
  void rewind(int64_t step) const;
  void write(const LogRow& row, bool print) const;

 private:
  std::string model_;
  std::filesystem::path file_;
  int group_size_;
  bool cuda_;
  double flops_per_second_;
};

}  // namespace smalltalk
