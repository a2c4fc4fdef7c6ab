// The one training loop: router, expert, dense baseline. What differs is a value: the config, the
// source of rows, the group of ranks. AdamW (decoupled decay on matrices, not on norms), gradient
// clipping by global norm, warm-up and decay as in core/learning_rate.hpp, gradient accumulation
// over micro-batches, optimiser state sharded over the group (ZeRO-1: reduce-scatter of gradients,
// AdamW on the own part, all-gather of parameters). The loss is the mean over all tokens of the
// global batch, whatever the number of ranks and micro-batches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "smalltalk/core/batch.hpp"
#include "smalltalk/core/collectives.hpp"
#include "smalltalk/core/experiment.hpp"
#include "smalltalk/lm/transformer.hpp"

namespace smalltalk {

struct TrainOptions {
  std::string name;  // "expert 3", for log lines and metrics
  // metrics.jsonl, checkpoint.safetensors, tensorboard/, trace.json; empty: keep nothing.
  std::filesystem::path folder;
  std::map<std::string, std::string> provenance;  // a checkpoint of other provenance is refused
  HostCollectives group;                          // ranks that train this model together
  std::string nccl_rendezvous;               // cuda groups of more than one: path of a file store
  int64_t bucket_bytes = int64_t{25} << 20;  // of gradients that a group sums by one call
  bool show_progress = true;
};

struct TrainSummary {
  int64_t steps = 0;     // done in all, resumed ones included
  int64_t tokens = 0;    // targets trained on, in all
  double last_loss = 0;  // mean over the last logged interval, nats per token
  double seconds = 0;    // of this process
};

class Trainer {
 public:
  // The model must outlive the trainer. REQUIRES batch_size divisible by group size x micro batch.
  Trainer(Transformer& model, const TrainConfig& config, const TrainOptions& options);
  ~Trainer();
  Trainer(Trainer&&) noexcept;

  // Takes up folder/checkpoint.safetensors if it is there. Returns the step to go on from.
  int64_t resume();
  // Trains from step() up to but without `last_step`; step t consumes rows t B .. t B + B - 1, each
  // rank its share. Appends a JSON line to metrics.jsonl and prints a line every log_interval steps
  // and at the first and last; saves every save_interval steps. Reports outlier steps, and leaves
  // their updates out if the config says so. rows.read is called from a thread of the loader.
  // Error: a loss or gradient that is not finite (step named); what rows.read throws.
  TrainSummary run(const RowSource& rows, int64_t last_step);
  int64_t step() const;
  // Weights, optimiser state and step in one safetensors file; all ranks of the group must call.
  void save(const std::filesystem::path& file) const;
  void load(const std::filesystem::path& file);

  struct Impl;  // src/lm/trainer_impl.hpp, for TransformerStack
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Gradients of the mean loss over `count` rows by parameter name, for tests against a reference.
std::map<std::string, std::vector<float>> loss_gradients(Transformer& model,
                                                         std::span<const int64_t> tokens,
                                                         int64_t count, int64_t row_tokens,
                                                         double* loss);

}  // namespace smalltalk
