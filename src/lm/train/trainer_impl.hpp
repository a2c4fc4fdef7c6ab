// The inside of a Trainer: what lasts from one run to the next. The loop is in trainer.cpp, what
// one model does in a step in training_run.cpp, checkpoints are in checkpoint.cpp.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>

#include "lm/model/transformer_impl.hpp"
#include "lm/train/checkpoint_folder.hpp"
#include "lm/train/sharded_adamw.hpp"
#include "lm/train/sharded_file.hpp"
#include "lm/train/training_log.hpp"
#include "lm/train/training_progress.hpp"
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

  ShardedLayout sharded_layout() const {
    return {whole, whole_pieces(whole, model.layout, optimizer.pieces())};
  }
  std::map<std::string, std::string> checkpoint_entries() const;  // its metadata
  // Collective, as all that follow.
  void save(const std::filesystem::path& file);
  void save_model(const std::filesystem::path& folder,
                  const std::map<std::string, std::string>& metadata);
  void checkpoint();           // of this step, written while training goes on
  void complete_checkpoint();  // all ranks have written theirs
  void flush_checkpoint();     // waits for it
  void resume();
  struct Checkpoint {
    SafetensorsHeader header;
    std::string damage;  // empty: it is whole
  };
  // Whether a checkpoint is of the plain model that came before this one.
  bool is_dense(const SafetensorsHeader& header) const;
  // Reads this rank's share of a checkpoint, and takes part in checking all of it.
  Checkpoint read(const std::filesystem::path& file, const ShardedAdamW::Shards& shards) const;

  // To be called on: nothing of the optimiser's is under way.
  const HostCollectives& group() {
    optimizer.wait_for_parameters();
    return options.group;
  }

  Transformer::Impl& model;
  ParameterLayout whole;  // of the model, of which this rank may have a slice
  TrainConfig config;
  TrainOptions options;
  ShardedAdamW optimizer;
  TrainingLog log;
  int64_t kept_step = 0;  // whose checkpoint is needed to train for longer; 0: none
  CheckpointFolder checkpoints;
  TrainingProgress progress;
  int64_t saved_step = -1;            // of the newest checkpoint
  int64_t micro_batch = 0;            // rows
  bool told_attention = false;        // the log says how it is computed
  std::optional<ShardedWrite> write;  // of a checkpoint, under way or done
};

}  // namespace smalltalk
