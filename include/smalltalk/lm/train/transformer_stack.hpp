// Several transformers of one configuration that live on one device and compute as one model, their
// weights one after another in one buffer: on a GPU with batched products, on the CPU dealt out
// whole to the compute threads. For the routers of a rank. R models.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {

class TransformerStack {
 public:
  // Model i starts from the weights that Transformer(config, device, seeds[i]) has. R >= 1.
  TransformerStack(const ModelConfig& config, const DeviceConfig& device,
                   std::span<const uint64_t> seeds);
  // From folders as Transformer::load reads them. Error: models of different shapes.
  static std::unique_ptr<TransformerStack> load(std::span<const std::filesystem::path> folders,
                                                const DeviceConfig& device);
  ~TransformerStack();
  TransformerStack(const TransformerStack&) = delete;

  int64_t size() const;
  // A transformer like any other, whose weights are part of the stack's.
  Transformer& operator[](int64_t model);

  operator ModelsView() const;  // all models, to score the same rows

  // Trains all models up to but without `last_step`, step by step: every step is one pass over the
  // stack. trainers[i] trains model i, alone in its group, on rows[i]; all are at the same step,
  // with the same batch and row lengths. On the CPU the results are the bits of trainer after
  // trainer with one compute thread, on a GPU they differ by the rounding of batched products.
  void train(std::span<Trainer* const> trainers, std::span<const RowSource> rows,
             int64_t last_step);

 private:
  // Without weights.
  TransformerStack(const ModelConfig& config, const DeviceConfig& device, size_t num_models);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
