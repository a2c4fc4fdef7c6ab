// Models of LibTorch's engine on the CPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <string>

#include "fixtures.hpp"
#include "lm/torch/torch_engine.hpp"

namespace smalltalk {

// R models of one configuration with different weights, in one flat buffer.
struct Models {
  explicit Models(const ModelConfig& model, int64_t count = 1,
                  const std::string& precision = "float32")
      : config(model.resolved()),
        layout(parameter_layout(config)),
        parameters(at::zeros({count * layout.total})),
        gradients(at::zeros_like(parameters)),
        engine(config, layout, parameters, precision, count) {
    for (int64_t r = 0; r < count; ++r) {
      for (const ParameterSpec& spec : layout.specs) {
        init_parameter(spec, static_cast<uint64_t>(3 + r),
                       weights() + r * layout.total + spec.offset);
      }
    }
    engine.rebind(weights(), gradients.data_ptr<float>());
  }
  float* weights() { return parameters.data_ptr<float>(); }

  ModelConfig config;
  ParameterLayout layout;
  at::Tensor parameters, gradients;
  TorchEngine engine;
};

}  // namespace smalltalk
