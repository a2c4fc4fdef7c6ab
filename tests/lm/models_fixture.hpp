// Models of LibTorch's engine, on the CPU unless said otherwise.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <string>
#include <vector>

#include "fixtures.hpp"
#include "lm/torch/torch_engine.hpp"

namespace smalltalk {

// R models of one configuration with different weights, in one flat buffer.
struct Models {
  explicit Models(const ModelConfig& model, int64_t count = 1,
                  const std::string& precision = "float32", at::Device device = at::kCPU,
                  ExpertSlice slice = {})
      : config(model.resolved()),
        layout(parameter_layout(config, slice)),
        parameters(initial(layout, count).to(device)),
        gradients(at::zeros_like(parameters)),
        engine(sliced(config, slice), layout, device, precision, count) {
    if (precision == "bf16-mixed") copies = at::zeros_like(parameters, at::kBFloat16);
    copy_again();
    ModelBuffers buffers;
    buffers.parameters = parameters.data_ptr<float>();
    if (copies.defined()) buffers.copies = copies.data_ptr();
    buffers.gradients = gradients.data_ptr<float>();
    engine.rebind(buffers);
  }
  static at::Tensor initial(const ParameterLayout& layout, int64_t count) {
    at::Tensor flat = at::zeros({count * layout.total});
    for (int64_t r = 0; r < count; ++r) {
      for (const ParameterSpec& spec : layout.specs) {
        init_parameter(spec, static_cast<uint64_t>(3 + r),
                       flat.data_ptr<float>() + r * layout.total + spec.offset);
      }
    }
    return flat;
  }
  void copy_again() {  // parameters have been written
    if (copies.defined()) copies.copy_(parameters);
  }
  // Losses of a training step.
  std::vector<double> step(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                           float scale, const Exchange& exchange = {}) {
    return engine.accumulate_gradients(tokens, rows, row_tokens, scale, exchange).values();
  }

  ModelConfig config;
  ParameterLayout layout;
  at::Tensor parameters, copies, gradients;
  TorchEngine engine;
};

}  // namespace smalltalk
