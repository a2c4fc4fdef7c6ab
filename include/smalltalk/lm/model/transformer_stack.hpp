// Several transformers of one configuration that live on one device and compute as one model, their
// weights one after another in one buffer: on a GPU with batched products, on the CPU dealt out
// whole to the compute threads. For the routers of a rank. R models.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer.hpp"

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

  // For the training loop (src/lm/model/transformer_impl.hpp): the stack as one, with the gradients
  // of all models in one buffer, of which each model's own are part from now on.
  Transformer::Impl& with_gradients();

 private:
  // Without weights.
  TransformerStack(const ModelConfig& config, const DeviceConfig& device, size_t num_models);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
