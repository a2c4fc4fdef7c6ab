#include "lm/torch/torch_weights.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

at::Tensor product(const at::Tensor& x, const TorchWeight& weight) {
  if (weight.value.size(0) == 1) return at::mm(x[0], weight.value[0].t()).unsqueeze(0);
  return at::bmm(x, weight.value.transpose(1, 2));
}

void product_float(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  const bool batched = out.dim() == 3;
  if (a.scalar_type() == at::kFloat) {
    batched ? at::bmm_out(out, a, b) : at::mm_out(out, a, b);
  } else if (!a.is_cuda()) {
    product_float(out, a.to(at::kFloat), b.to(at::kFloat));
  } else {
    batched ? at::bmm_out(out, a, b, at::kFloat) : at::mm_out(out, a, b, at::kFloat);
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
  if (weight.value.size(0) == 1) {
    at::Tensor gradient = weight.gradient[0];
    add_product(gradient, d_out[0].t(), x[0]);
    return at::mm(d_out[0], weight.value[0]).unsqueeze(0);
  }
  add_product(weight.gradient, d_out.transpose(1, 2), x);
  return at::bmm(d_out, weight.value);
}

TorchWeights::TorchWeights(const ModelConfig& config, const ParameterLayout& layout,
                           at::Device device, at::ScalarType type, int64_t num_models)
    : config_(config), layout_(layout), device_(device), type_(type), num_models_(num_models) {}

// `values` begins with the parameter at `values_begin`.
TorchWeight TorchWeights::weight(const at::Tensor& values, int64_t values_begin, int64_t offset,
                                 int64_t count, int64_t stride, const std::vector<int64_t>& shape,
                                 float* gradients) const {
  std::vector<int64_t> sizes = {count}, strides = {stride};
  int64_t inner = 1;
  for (const int64_t extent : shape) inner *= extent;
  for (const int64_t extent : shape) {
    inner /= extent;
    sizes.push_back(extent);
    strides.push_back(inner);
  }
  TorchWeight result;
  result.value = values.as_strided(sizes, strides, offset - values_begin);
  if (gradients != nullptr) {
    const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
    result.gradient = at::from_blob(gradients + offset, sizes, strides, options);
  }
  return result;
}

void TorchWeights::rebind(const ModelBuffers& buffers) {
  const auto flat = [&](void* data, int64_t size, at::ScalarType type) {
    return at::from_blob(data, {size}, at::TensorOptions().dtype(type).device(device_));
  };
  const int64_t size = num_models_ * layout_.total;
  const bool is_float = type_ == at::kFloat, apart = buffers.norms != nullptr;
  ST_CHECK(is_float ? buffers.parameters != nullptr : buffers.copies != nullptr);
  ST_CHECK(apart ? num_models_ == 1 : buffers.parameters != nullptr);
  const at::Tensor products =
      flat(is_float ? buffers.parameters : buffers.copies, size, is_float ? at::kFloat : type_);
  const int64_t norms_begin = apart ? layout_.decay_size : 0;
  const at::Tensor norms =
      flat(apart ? buffers.norms : buffers.parameters, size - norms_begin, at::kFloat);
  const auto matrix = [&](int64_t offset, int64_t out, int64_t in) {
    return weight(products, 0, offset, num_models_, layout_.total, {out, in}, buffers.gradients);
  };
  const auto feed_forward = [&](bool merges, int64_t offset, int64_t out, int64_t in) {
    if (!merges) return matrix(offset, out, in);
    return weight(products, 0, offset, config_.merged_experts, layout_.expert_stride, {out, in},
                  buffers.gradients);
  };
  const int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  const auto norm = [&](int64_t offset) {
    return weight(norms, norms_begin, offset, num_models_, layout_.total, {1, hidden},
                  buffers.gradients);
  };
  embedding = matrix(layout_.embedding, config_.vocab_size, hidden);
  head = matrix(layout_.head, config_.vocab_size, hidden);
  final_norm = norm(layout_.final_norm);
  layers.clear();
  for (const LayerOffsets& layer : layout_.layers) {
    layers.push_back(
        {matrix(layer.qkv, qkv_width(config_), hidden),
         matrix(layer.output, hidden, config_.num_heads * config_.head_dim()),
         feed_forward(layer.merges, layer.gate_up, gate_up_width(config_), hidden),
         feed_forward(layer.merges, layer.down, hidden, width), norm(layer.attention_norm),
         norm(layer.feed_forward_norm),
         layer.merges ? matrix(layer.router, config_.merged_experts, hidden) : TorchWeight()});
  }
}

}  // namespace smalltalk
