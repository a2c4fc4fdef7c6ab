// The one training loop: routers, expert, dense baseline. What differs is a value: the config, the
// source of rows, the group of ranks, the number of models that train at once. AdamW (decoupled
// decay on matrices, not on norms), gradient clipping by global norm, warm-up and decay as in
// core/experiment/learning_rate.hpp, gradient accumulation over micro-batches, optimiser state
// sharded over the group (ZeRO-1: reduce-scatter of gradients, AdamW on the own part, all-gather of
// parameters). The loss is the mean over all tokens of the global batch but padding, whatever the
// number of ranks and micro-batches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

class TransformerStack;

struct TrainOptions {
  std::string name;  // "expert 3", for log lines and metrics
  // metrics.jsonl, checkpoints/, tensorboard/, trace.json; empty: keep nothing.
  std::filesystem::path folder;
  std::map<std::string, std::string> provenance;  // a checkpoint of other provenance is refused
  HostCollectives group;                          // ranks that train this model together
  int64_t bucket_bytes = 0;  // of gradients that a group sums by one call; 0: by the model's size
  // Keeps the checkpoint from which the model can be trained for longer (Schedule).
  bool keeps_stable_phase = false;
  // Of a model that merges experts, whose first so many steps the plain model of the same shape was
  // trained in this folder, by a trainer of its own: resume() takes up that model's last
  // checkpoint, too. All experts begin as its feed-forwards, moments included, and routers at
  // random. If the newest whole checkpoint is an earlier one, resume() leaves it alone: step 0.
  int64_t dense_steps = 0;
  bool show_progress = true;
};

struct TrainSummary {
  int64_t steps = 0;     // done in all, resumed ones included
  int64_t tokens = 0;    // targets trained on, in all
  double last_loss = 0;  // mean over the last logged interval, nats per token
};

class Trainer {
 public:
  // The model must outlive the trainer. REQUIRES batch_size divisible by group size x micro batch.
  Trainer(Transformer& model, const TrainConfig& config, const TrainOptions& options);
  ~Trainer();
  Trainer(Trainer&&) noexcept;

  // Takes up the newest whole checkpoint of the folder, if there is one, whose steps so far had the
  // learning rates of this schedule; says which were damaged. Returns the step to go on from.
  // Collective; each rank reads its own shard. Error: checkpoints, but none that will do; one of
  // other provenance.
  int64_t resume();
  // Trains from step() up to but without `last_step`; step t consumes rows t B .. t B + B - 1, each
  // rank its share. Appends a JSON line to metrics.jsonl and prints a line every log_interval steps
  // and at the first and last; saves every save_interval (and keep_every) steps, on a thread of its
  // own. Reports outlier steps, and leaves their updates out if the config says so. rows.read is
  // called from a thread of the loader. Throws Stopped, on all ranks of the group, with a
  // checkpoint of that step, if any of them was asked to stop before the last step. Error: a loss
  // or gradient that is not finite (step and sequences named), unless the config says to skip such
  // steps; what rows.read or a checkpoint's write throws.
  TrainSummary run(const RowSource& rows, int64_t last_step);
  int64_t step() const;
  // A checkpoint of this step, whole when it returns. Collective, as are the next two. Each rank
  // writes its own shard. Error on the rank that fails; nothing gets its name then.
  void checkpoint();
  // The same in a file of any name.
  void save(const std::filesystem::path& file) const;
  // The trained model: Transformer::save(), with the same bytes.
  void save_model(const std::filesystem::path& folder,
                  const std::map<std::string, std::string>& metadata) const;
  // Training is over: removes the checkpoints that are not kept for ever.
  void clear_checkpoints();

 private:
  friend void train_stack(TransformerStack& stack, std::span<Trainer* const> trainers,
                          std::span<const RowSource> rows, int64_t last_step);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Trainer::run() of all models of a stack at once, one pass over the stack a micro-batch.
// trainers[i] trains model i, alone in its group, on rows[i]. All are at the same step, with
// batches and rows of the same size. If one is to stop, all do, at the same step. On the CPU the
// results are the bits of trainer after trainer with one compute thread, on a GPU they differ by
// the rounding of batched products.
void train_stack(TransformerStack& stack, std::span<Trainer* const> trainers,
                 std::span<const RowSource> rows, int64_t last_step);

// Gradients of the mean loss over `count` rows by parameter name, for tests against a reference.
std::map<std::string, std::vector<float>> loss_gradients(Transformer& model,
                                                         std::span<const int64_t> tokens,
                                                         int64_t count, int64_t row_tokens,
                                                         double* loss);

}  // namespace smalltalk
