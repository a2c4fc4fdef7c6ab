#include "lm/torch/block_ops.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/where.h>

#include "lm/torch/device.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

const BlockKernels* cpu_kernels = nullptr;
const UpdateKernels* cpu_update_kernels = nullptr;

NumberType number_type(at::ScalarType type) {
  return type == at::kBFloat16 ? NumberType::bfloat16 : NumberType::float32;
}

const BlockKernels* kernels_for_norm(const at::Tensor& x) {
  return x.size(-1) <= kMaxNormWidth ? block_kernels(x.device()) : nullptr;
}

NormShape norm_shape(const at::Tensor& x, const at::Tensor& weight, at::ScalarType type) {
  return {number_type(type), x.size(0), x.size(0) * x.size(1), x.size(2), weight.stride(0)};
}

RotaryShape rotary_shape(const ModelConfig& config, const at::Tensor& qkv, int64_t length) {
  return {number_type(qkv.scalar_type()),
          qkv.size(0) * qkv.size(1),
          length,
          config.num_heads,
          config.num_kv_heads,
          config.head_dim()};
}

ActivationShape activation_shape(const ModelConfig& config, const at::Tensor& up) {
  return {number_type(up.scalar_type()), up.size(0) * up.size(1), config.intermediate_size,
          config.feed_forward == FeedForward::swiglu};
}

HeadsView view_of(const at::Tensor& heads) {
  return {heads.const_data_ptr(), heads.stride(0), heads.stride(1), heads.stride(2)};
}

Heads view_heads(const ModelConfig& config, const at::Tensor& qkv, int64_t length) {
  const int64_t heads = config.num_heads, kv = config.num_kv_heads;
  // Sequences of all models are alike here.
  const at::Tensor all = qkv.view({-1, length, heads + 2 * kv, config.head_dim()}).transpose(1, 2);
  return {all.narrow(1, 0, heads), all.narrow(1, heads, kv), all.narrow(1, heads + kv, kv)};
}

template <class T>
T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

}  // namespace

const BlockKernels* block_kernels(const at::Device& device) {
  return device.is_cuda() ? &cuda_device().block_kernels() : cpu_kernels;
}
void set_cpu_block_kernels(const BlockKernels* kernels) { cpu_kernels = kernels; }

CUstream_st* stream_of(const at::Tensor& tensor) {
  return tensor.is_cuda() ? cuda_device().stream() : nullptr;
}

void check_launch(const at::Tensor& tensor) {
  if (tensor.is_cuda()) cuda_device().check_launch();
}

const UpdateKernels* update_kernels(const at::Device& device) {
  return device.is_cuda() ? &cuda_device().update_kernels() : cpu_update_kernels;
}
void set_cpu_update_kernels(const UpdateKernels* kernels) { cpu_update_kernels = kernels; }

at::Tensor copied_to(const at::Device& device, std::span<const int64_t> values) {
  if (device.is_cuda()) return cuda_device().upload(values);
  return at::from_blob(const_cast<int64_t*>(values.data()), {std::ssize(values)}, at::kLong)
      .clone();
}

// ---- Norm ---------------------------------------------------------------------------------------

Normed add_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                double epsilon, at::ScalarType type) {
  const BlockKernels* kernels = kernels_for_norm(x);
  Normed result;
  if (kernels == nullptr) {
    result.sum = delta.defined() ? x + delta : x;
    result.rstd = reciprocal_root(result.sum, epsilon);
    result.out = (result.sum * result.rstd * weight).to(type);
    return result;
  }
  ST_CHECK(x.is_contiguous() && (!delta.defined() || delta.is_contiguous()));
  result.sum = delta.defined() ? at::empty_like(x) : x;
  result.out = at::empty_like(x, type);
  result.rstd = at::empty({x.size(0), x.size(1), 1}, x.options());
  kernels->add_norm(norm_shape(x, weight, type), x.const_data_ptr<float>(),
                    data_or_null<void>(delta), weight.const_data_ptr<float>(),
                    static_cast<float>(epsilon), result.sum.data_ptr<float>(),
                    result.out.data_ptr(), result.rstd.data_ptr<float>(), stream_of(x));
  check_launch(x);
  return result;
}

at::Tensor norm_again(const Normed& normed, const at::Tensor& weight, double epsilon,
                      at::ScalarType type) {
  return add_norm(normed.sum, {}, weight, epsilon, type).out;
}

at::Tensor norm_backward(const at::Tensor& d_out, const Normed& normed, const at::Tensor& weight,
                         at::Tensor& d_x, at::Tensor& d_weight) {
  const at::Tensor &x = normed.sum, &rstd = normed.rstd;
  const at::ScalarType type = d_out.scalar_type();
  const BlockKernels* kernels = kernels_for_norm(x);
  if (kernels == nullptr) {
    const at::Tensor gradient = d_out.to(at::kFloat), scaled = x * rstd;
    d_weight.add_((gradient * scaled).sum(1, true));
    const at::Tensor of_scaled = gradient * weight;
    d_x.add_(rstd * (of_scaled - scaled * (of_scaled * scaled).mean(-1, true)));
    return d_x.to(type);
  }
  ST_CHECK(x.is_contiguous() && d_x.is_contiguous() && d_out.is_contiguous());
  ST_CHECK(weight.stride(0) == d_weight.stride(0));
  at::Tensor rounded = type == at::kFloat ? d_x : at::empty_like(d_x, type);
  const at::Tensor parts = at::empty({x.size(0) * kNormParts * x.size(2)}, x.options());
  kernels->norm_backward(norm_shape(x, weight, type), d_out.const_data_ptr(),
                         x.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                         rstd.const_data_ptr<float>(), d_x.data_ptr<float>(),
                         type == at::kFloat ? nullptr : rounded.data_ptr(), parts.data_ptr<float>(),
                         d_weight.data_ptr<float>(), stream_of(x));
  check_launch(x);
  return rounded;
}

// ---- Heads --------------------------------------------------------------------------------------

Heads split_heads(const ModelConfig& config, at::Tensor& qkv, const RotaryAngles& angles) {
  const int64_t length = angles.cosine.size(0);
  Heads heads = view_heads(config, qkv, length);
  if (const BlockKernels* kernels = block_kernels(qkv.device())) {
    ST_CHECK(qkv.is_contiguous());
    kernels->rotate(rotary_shape(config, qkv, length), qkv.data_ptr(),
                    angles.cosine.const_data_ptr<float>(), angles.sine.const_data_ptr<float>(),
                    stream_of(qkv));
    check_launch(qkv);
  } else {
    heads.query.copy_(rotate(heads.query, angles));
    heads.key.copy_(rotate(heads.key, angles));
  }
  return heads;
}

at::Tensor split_heads_backward(const ModelConfig& config, const Heads& gradients,
                                const RotaryAngles& angles, int64_t num_models) {
  const int64_t length = angles.cosine.size(0), sequences = gradients.query.size(0);
  const at::Tensor d_qkv =
      at::empty({num_models, sequences * length / num_models,
                 (config.num_heads + 2 * config.num_kv_heads) * config.head_dim()},
                gradients.query.options());
  const BlockKernels* kernels = block_kernels(d_qkv.device());
  if (kernels == nullptr) {
    const RotaryAngles back = {angles.cosine, -angles.sine};
    const Heads parts = view_heads(config, d_qkv, length);
    parts.query.copy_(rotate(gradients.query, back));
    parts.key.copy_(rotate(gradients.key, back));
    parts.value.copy_(gradients.value);
    return d_qkv;
  }
  const auto packed = [](const at::Tensor& heads) {  // the last dimension, whatever the others are
    return heads.stride(3) == 1 ? heads : heads.contiguous();
  };
  const at::Tensor query = packed(gradients.query), key = packed(gradients.key),
                   value = packed(gradients.value);
  kernels->rotate_backward(rotary_shape(config, d_qkv, length), view_of(query), view_of(key),
                           view_of(value), angles.cosine.const_data_ptr<float>(),
                           angles.sine.const_data_ptr<float>(), d_qkv.data_ptr(), stream_of(d_qkv));
  check_launch(d_qkv);
  return d_qkv;
}

// ---- Activation ---------------------------------------------------------------------------------

at::Tensor activation(const ModelConfig& config, const at::Tensor& up) {
  const BlockKernels* kernels = block_kernels(up.device());
  if (kernels == nullptr) return activate(config, up);
  ST_CHECK(up.is_contiguous());
  const at::Tensor out =
      at::empty({up.size(0), up.size(1), config.intermediate_size}, up.options());
  kernels->activate(activation_shape(config, up), up.const_data_ptr(), out.data_ptr(),
                    stream_of(up));
  check_launch(up);
  return out;
}

at::Tensor activation_backward(const ModelConfig& config, const at::Tensor& up,
                               const at::Tensor& d_out) {
  if (const BlockKernels* kernels = block_kernels(up.device())) {
    ST_CHECK(up.is_contiguous() && d_out.is_contiguous());
    at::Tensor d_up = at::empty_like(up);
    kernels->activate_backward(activation_shape(config, up), up.const_data_ptr(),
                               d_out.const_data_ptr(), d_up.data_ptr(), stream_of(up));
    check_launch(up);
    return d_up;
  }
  if (config.feed_forward == FeedForward::relu2) return 2 * at::relu(up) * d_out;
  const auto parts = up.to(at::kFloat).chunk(2, -1);
  const at::Tensor &gate = parts[0], sigmoid = gate.sigmoid();
  const at::Tensor d_gate = d_out * parts[1] * sigmoid * (1 + gate * (1 - sigmoid));
  return at::cat({d_gate, d_out * gate * sigmoid}, -1).to(up.scalar_type());
}

// ---- Softmax ------------------------------------------------------------------------------------

void softmax_scores(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& counted,
                    float scale, at::Tensor log_probs, at::Tensor greedy, at::Tensor* d_logits) {
  if (const BlockKernels* kernels = block_kernels(logits.device())) {
    const at::Tensor flags = counted.defined() ? counted.contiguous() : counted;
    ST_CHECK(logits.is_contiguous() && targets.is_contiguous() && log_probs.is_contiguous() &&
             greedy.is_contiguous() && (d_logits == nullptr || d_logits->is_contiguous()));
    const NumberType type =
        d_logits == nullptr ? NumberType::float32 : number_type(d_logits->scalar_type());
    kernels->softmax({type, logits.size(0), logits.size(1)}, logits.const_data_ptr<float>(),
                     targets.const_data_ptr<int64_t>(), data_or_null<const uint8_t>(flags), scale,
                     log_probs.data_ptr<float>(), greedy.data_ptr<uint8_t>(),
                     d_logits == nullptr ? nullptr : d_logits->data_ptr(), stream_of(logits));
    check_launch(logits);
    return;
  }
  const at::Tensor target = targets.unsqueeze(1), log_sums = logits.logsumexp(1, true);
  const at::Tensor target_logits = logits.gather(1, target);
  const at::Tensor all = (target_logits - log_sums).squeeze(1);
  log_probs.copy_(counted.defined() ? at::where(counted, all, 0.0) : all);
  greedy.copy_((target_logits >= logits.amax(1, true)).squeeze(1));
  if (d_logits == nullptr) return;
  at::Tensor gradient = (logits - log_sums).exp_();
  gradient.scatter_add_(1, target, at::full_like(target, -1, gradient.options()));
  if (counted.defined()) gradient.mul_(counted.unsqueeze(1));
  d_logits->copy_(gradient.mul_(scale));
}

}  // namespace smalltalk
