// What a block does between its matrix products, in LibTorch operations that autograd knows: the
// same in training, in scoring and in decoding.
#pragma once

#include <ATen/core/Tensor.h>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// 1 / sqrt(mean(x^2) + epsilon) of the last dimension, which stays as one of size 1.
at::Tensor reciprocal_root(const at::Tensor& x, double epsilon);
// Of the last dimension. x is float32, as the residual stream is in both precisions; the result has
// the type of the products.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon,
                    at::ScalarType type);

struct RotaryAngles {
  at::Tensor cosine, sine;  // [length, head_dim]
};
RotaryAngles rotary_angles(const ModelConfig& config, int64_t length, at::Device device);
// Turns x [..., head_dim] by angles that broadcast to its shape; half-split layout.
at::Tensor rotate(const at::Tensor& x, const RotaryAngles& angles);

// [..., gate_up_width] -> [..., F]
at::Tensor activate(const ModelConfig& config, const at::Tensor& up);

}  // namespace smalltalk
