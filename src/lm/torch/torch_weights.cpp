#include "lm/torch/torch_weights.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace smalltalk {

at::Tensor product(const at::Tensor& x, const TorchWeight& weight) {
  if (weight.matrix.size(0) == 1) return at::mm(x[0], weight.matrix[0].t()).unsqueeze(0);
  return at::bmm(x, weight.matrix.transpose(1, 2));
}

void product_float(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == at::kFloat) {
    at::mm_out(out, a, b);
  } else if (a.is_cuda()) {
    at::mm_out(out, a, b, at::kFloat);
  } else {
    at::mm_out(out, a.to(at::kFloat), b.to(at::kFloat));
  }
}

void add_product(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b) {
  const bool batched = sum.dim() == 3;
  if (a.scalar_type() == at::kFloat) {
    batched ? sum.baddbmm_(a, b) : sum.addmm_(a, b);
  } else if (!a.is_cuda()) {
    add_product(sum, a.to(at::kFloat), b.to(at::kFloat));
  } else if (batched) {
    at::baddbmm_out(sum, sum, a, b, at::kFloat);
  } else {
    at::addmm_out(sum, sum, a, b, at::kFloat);
  }
}

at::Tensor product_backward(const at::Tensor& x, TorchWeight& weight, const at::Tensor& d_out) {
  if (weight.matrix.size(0) == 1) {
    at::Tensor gradient = weight.gradient[0];
    add_product(gradient, d_out[0].t(), x[0]);
    return at::mm(d_out[0], weight.matrix[0]).unsqueeze(0);
  }
  add_product(weight.gradient, d_out.transpose(1, 2), x);
  return at::bmm(d_out, weight.matrix);
}

TorchWeights::TorchWeights(const ModelConfig& config, const ParameterLayout& layout,
                           at::Device device, at::ScalarType type, int64_t num_models)
    : config_(config), layout_(layout), device_(device), type_(type), num_models_(num_models) {}

TorchWeight TorchWeights::weight(int64_t offset, const std::vector<int64_t>& shape,
                                 float* gradients) const {
  std::vector<int64_t> sizes = {num_models_}, strides = {layout_.total};
  int64_t stride = 1;
  for (const int64_t extent : shape) stride *= extent;
  for (const int64_t extent : shape) {
    stride /= extent;
    sizes.push_back(extent);
    strides.push_back(stride);
  }
  TorchWeight result;
  result.value = flat_.as_strided(sizes, strides, offset);
  result.matrix = matrices_.as_strided(sizes, strides, offset);
  if (gradients != nullptr) {
    result.gradient = at::from_blob(gradients + offset, sizes, strides, flat_.options());
  }
  return result;
}

void TorchWeights::rebind(float* parameters, float* gradients) {
  flat_ = at::from_blob(parameters, {num_models_ * layout_.total},
                        at::TensorOptions().dtype(at::kFloat).device(device_));
  if (type_ == at::kFloat) {
    matrices_ = flat_;
  } else if (!matrices_.defined()) {
    matrices_ = at::empty_like(flat_, type_);
  }
  const auto view = [&](int64_t offset, const std::vector<int64_t>& shape) {
    return weight(offset, shape, gradients);
  };
  const int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  embedding = view(layout_.embedding, {config_.vocab_size, hidden});
  head = view(layout_.head, {config_.vocab_size, hidden});
  final_norm = view(layout_.final_norm, {1, hidden});
  layers.clear();
  for (const LayerOffsets& layer : layout_.layers) {
    layers.push_back({view(layer.qkv, {qkv_width(config_), hidden}),
                      view(layer.output, {hidden, config_.num_heads * config_.head_dim()}),
                      view(layer.gate_up, {gate_up_width(config_), hidden}),
                      view(layer.down, {hidden, width}), view(layer.attention_norm, {1, hidden}),
                      view(layer.feed_forward_norm, {1, hidden})});
  }
}

void TorchWeights::cast() {
  if (type_ != at::kFloat) matrices_.copy_(flat_);
}

}  // namespace smalltalk
