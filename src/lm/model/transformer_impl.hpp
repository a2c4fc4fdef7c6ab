// The inside of a Transformer, for the training loop: flat buffers and the engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "lm/model/engine.hpp"
#include "lm/model/parameter_layout.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

struct Transformer::Impl {
  // With parameters of its own, or, in a stack, with a part of larger ones.
  Impl(const ModelConfig& config, const DeviceConfig& device, at::Tensor parameters = {},
       std::shared_ptr<ThreadTeam> team = nullptr, int64_t num_models = 1);

  // Buffers of `padded` floats, so that a group of ranks can share them out evenly. Keeps the
  // values; the padding is and stays zero.
  void pad_to(int64_t padded);
  void init(uint64_t seed);  // as Transformer's constructor describes
  void set_parameter(const ParameterSpec& spec, std::span<const float> values);
  // A copy of the flat parameters in host memory; cheap on the CPU (no copy).
  at::Tensor host_parameters() const;

  ModelConfig config;  // resolved
  DeviceConfig device;
  ParameterLayout layout;
  int64_t num_models;
  at::Tensor parameters;  // [num_models, padded], float32
  at::Tensor gradients;   // as the parameters; empty until a trainer asks for it
  void allocate_gradients();
  std::shared_ptr<ThreadTeam> team;
  std::unique_ptr<Engine> engine;
};

}  // namespace smalltalk
