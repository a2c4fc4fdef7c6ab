// The inside of a Transformer, for the training loop: flat buffers and the engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "engine.hpp"
#include "parameter_layout.hpp"
#include "smalltalk/lm/transformer.hpp"

namespace smalltalk {

struct Transformer::Impl {
  Impl(const ModelConfig& config, const DeviceConfig& device);

  // Buffers padded to a multiple of `multiple`, so that a group of that many ranks can share them
  // out evenly. Keeps the values; the padding is and stays zero.
  void pad_to(int64_t multiple);
  void set_parameter(const ParameterSpec& spec, std::span<const float> values);
  // A copy of the flat parameters in host memory; cheap on the CPU (no copy).
  at::Tensor host_parameters() const;

  ModelConfig config;  // resolved
  DeviceConfig device;
  ParameterLayout layout;
  at::Tensor parameters;  // [padded], float32
  at::Tensor gradients;   // [padded], float32; empty until a trainer asks for it
  void allocate_gradients();
  std::unique_ptr<Engine> engine;
};

// Error naming the row if an id is outside [0, V) or the sizes do not fit.
void check_tokens(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                  int64_t vocab_size);

}  // namespace smalltalk
