// The inside of a Trainer: what lasts from one run to the next. The loop is in trainer.cpp, what
// one model does in a step in training_run.cpp, checkpoints are in checkpoint.cpp.
#pragma once

#include <span>

#include "lm/model/transformer_impl.hpp"
#include "lm/train/checkpoint_folder.hpp"
#include "lm/train/sharded_adamw.hpp"
#include "lm/train/training_log.hpp"
#include "lm/train/training_progress.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {

struct Trainer::Impl {
  Impl(Transformer& transformer, const TrainConfig& train, const TrainOptions& train_options);

  class Run;  // lm/train/training_run.hpp
  // The one training loop, of R models at once: trainers[i] trains the i-th of `models` on rows[i].
  // All trainers are at the same step, with batches and rows of the same size. More than one of
  // them: each is alone in its group.
  static void train(Transformer::Impl& models, std::span<Impl* const> trainers,
                    std::span<const RowSource> rows, int64_t last_step);
  // With a checkpoint of this step of each; throws Stopped. Collective.
  [[noreturn]] static void save_and_stop(std::span<Impl* const> trainers);

  // All that a checkpoint holds, copied; on rank 0. Collective.
  struct Snapshot {
    at::Tensor parameters, first, second;  // in host memory
    std::map<std::string, std::string> metadata;
    void write(const ParameterLayout& layout, const std::filesystem::path& file) const;
  };
  Snapshot snapshot();
  void save(const std::filesystem::path& file);
  void checkpoint();        // of this step, written while training goes on; collective
  void flush_checkpoint();  // waits for it; collective
  void resume();
  void take_up(const SafetensorsFile& saved, const std::filesystem::path& file);

  Transformer::Impl& model;
  TrainConfig config;
  TrainOptions options;
  ShardedAdamW optimizer;
  TrainingLog log;
  int64_t kept_step = 0;  // whose checkpoint is needed to train for longer; 0: none
  CheckpointFolder checkpoints;
  TrainingProgress progress;
  int64_t saved_step = -1;  // of the newest checkpoint
  int64_t micro_batch = 0;  // rows
};

}  // namespace smalltalk
