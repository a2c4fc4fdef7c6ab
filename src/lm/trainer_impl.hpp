// The inside of a Trainer, shared by the loop (trainer.cpp) and checkpoints (checkpoint.cpp).
#pragma once

#include <vector>

#include "sharded_adamw.hpp"
#include "smalltalk/lm/trainer.hpp"
#include "training_log.hpp"
#include "transformer_impl.hpp"

namespace smalltalk {

struct Trainer::Impl {
  Impl(Transformer& transformer, const TrainConfig& train, const TrainOptions& train_options);

  TrainSummary run(const RowSource& rows, int64_t last_step);
  // Accumulates this rank's gradients of one step; returns the mean loss over its targets.
  double accumulate(const RowSource& rows);
  void log_step(int64_t row_tokens, double gradient_norm, double lr);
  void save(const std::filesystem::path& file);
  void load(const std::filesystem::path& file);

  Transformer::Impl& model;
  TrainConfig config;
  TrainOptions options;
  ShardedAdamW optimizer;
  TrainingLog log;
  int64_t micro_batch = 0;  // rows
  int64_t step = 0;         // steps done
  int64_t num_targets = 0;  // trained on, over the group
  std::vector<int64_t> tokens;

  // Since the last logged step. The first two are saved, so that a resumed run logs what the
  // unbroken one logs.
  std::vector<double> interval_losses;  // [ranks], sums over steps
  int64_t interval_steps = 0;
  int64_t interval_timed_steps = 0;  // of this process
  double interval_start = 0;
  double interval_data_seconds = 0;
  double last_loss = 0;
};

}  // namespace smalltalk
