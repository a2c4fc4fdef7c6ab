// The transformer in LibTorch operations with autograd: the engine of GPUs, in float32 or, with
// precision "bf16-mixed", with float32 master weights and bfloat16 products.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "engine.hpp"
#include "parameter_layout.hpp"

namespace smalltalk {

class TorchEngine : public Engine {
 public:
  // `parameters` is the flat buffer; it decides the device.
  TorchEngine(const ModelConfig& config, const ParameterLayout& layout,
              const at::Tensor& parameters, const std::string& precision);

  double accumulate_gradients(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                              float scale) override;
  void target_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                        std::span<float> log_probs) override;
  void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
              std::span<float> logits) override;
  void rebind(float* parameters, float* gradients) override;

 private:
  struct Layer {
    at::Tensor qkv, output, gate_up, down, attention_norm, feed_forward_norm;
  };
  // A leaf of autograd that is a view of the flat buffer, its gradient a view of the other.
  at::Tensor leaf(int64_t offset, std::vector<int64_t> shape) const;
  at::Tensor cast(const at::Tensor& weight) const;  // to the type of the products
  at::Tensor to_device(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens) const;
  at::Tensor norm(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor attention(const Layer& layer, const at::Tensor& x, const at::Tensor& cosine,
                       const at::Tensor& sine) const;
  at::Tensor feed_forward(const Layer& layer, const at::Tensor& x) const;
  at::Tensor hidden(const at::Tensor& inputs) const;  // [rows, length] -> [rows, length, H]

  ModelConfig config_;
  ParameterLayout layout_;
  at::Device device_;
  at::ScalarType type_;  // of the products
  float* parameters_ = nullptr;
  float* gradients_ = nullptr;
  at::Tensor embedding_, head_, final_norm_;
  std::vector<Layer> layers_;
};

}  // namespace smalltalk
