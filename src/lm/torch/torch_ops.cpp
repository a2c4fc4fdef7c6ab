#include "lm/torch/torch_ops.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

namespace smalltalk {

at::Tensor reciprocal_root(const at::Tensor& x, double epsilon) {
  return (x.square().mean(-1, true) + epsilon).rsqrt();
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon,
                    at::ScalarType type) {
  return (x * reciprocal_root(x, epsilon) * weight).to(type);
}

RotaryAngles rotary_angles(const ModelConfig& config, int64_t length, at::Device device) {
  const int64_t dim = config.head_dim();
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  const at::Tensor exponent = at::arange(0, dim, 2, options) / static_cast<double>(dim);
  const at::Tensor frequency = at::pow(config.rope_theta, exponent).reciprocal();
  const at::Tensor half = at::outer(at::arange(length, options), frequency);
  const at::Tensor angles = at::cat({half, half}, -1);
  return {angles.cos(), angles.sin()};
}

at::Tensor rotate(const at::Tensor& x, const RotaryAngles& angles) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor low = x.narrow(-1, 0, half), high = x.narrow(-1, half, half);
  return (x * angles.cosine + at::cat({-high, low}, -1) * angles.sine).to(x.scalar_type());
}

at::Tensor activate(const ModelConfig& config, const at::Tensor& up) {
  if (config.feed_forward == FeedForward::relu2) return at::relu(up).square();
  const auto gate_up = up.chunk(2, -1);
  return at::silu(gate_up[0]) * gate_up[1];
}

}  // namespace smalltalk
