#include "torch_engine.hpp"

#include <torch/torch.h>

#include <cmath>
#include <cstring>

#include "smalltalk/core/error.hpp"
#include "torch_loss.hpp"

namespace smalltalk {

TorchEngine::TorchEngine(const ModelConfig& config, const ParameterLayout& layout,
                         const at::Tensor& parameters, const std::string& precision)
    : config_(config),
      layout_(layout),
      device_(parameters.device()),
      type_(precision == "bf16-mixed" ? at::kBFloat16 : at::kFloat) {
  rebind(parameters.data_ptr<float>(), nullptr);
}

at::Tensor TorchEngine::leaf(int64_t offset, std::vector<int64_t> shape) const {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
  at::Tensor weight = torch::from_blob(parameters_ + offset, shape, options);
  if (gradients_ != nullptr) {
    weight.requires_grad_();
    weight.mutable_grad() = torch::from_blob(gradients_ + offset, shape, options);
  }
  return weight;
}

void TorchEngine::rebind(float* parameters, float* gradients) {
  parameters_ = parameters;
  gradients_ = gradients;
  const int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  embedding_ = leaf(layout_.embedding, {config_.vocab_size, hidden});
  head_ = config_.tie_embeddings ? embedding_ : leaf(layout_.head, {config_.vocab_size, hidden});
  final_norm_ = leaf(layout_.final_norm, {hidden});
  layers_.clear();
  for (const LayerOffsets& at : layout_.layers) {
    layers_.push_back({leaf(at.qkv, {qkv_width(config_), hidden}),
                       leaf(at.output, {hidden, config_.num_heads * config_.head_dim()}),
                       leaf(at.gate_up, {gate_up_width(config_), hidden}),
                       leaf(at.down, {hidden, width}), leaf(at.attention_norm, {hidden}),
                       leaf(at.feed_forward_norm, {hidden})});
  }
}

at::Tensor TorchEngine::cast(const at::Tensor& weight) const { return weight.to(type_); }

at::Tensor TorchEngine::norm(const at::Tensor& x, const at::Tensor& weight) const {
  // The residual stream is float32 in both precisions.
  const at::Tensor scale = (x.pow(2).mean(-1, true) + config_.rms_norm_eps).rsqrt();
  return (x * scale * weight).to(type_);
}

at::Tensor TorchEngine::attention(const Layer& layer, const at::Tensor& x, const at::Tensor& cosine,
                                  const at::Tensor& sine) const {
  const int64_t rows = x.size(0), length = x.size(1), dim = config_.head_dim();
  const int64_t heads = config_.num_heads, kv = config_.num_kv_heads;
  const at::Tensor qkv = at::linear(norm(x, layer.attention_norm), cast(layer.qkv))
                             .view({rows, length, heads + 2 * kv, dim})
                             .transpose(1, 2);  // [rows, heads + 2 kv, length, d]
  const auto rotate = [&](const at::Tensor& part) {
    const at::Tensor low = part.narrow(-1, 0, dim / 2), high = part.narrow(-1, dim / 2, dim / 2);
    return (part * cosine + at::cat({-high, low}, -1) * sine).to(type_);
  };
  const at::Tensor query = rotate(qkv.narrow(1, 0, heads));
  at::Tensor key = rotate(qkv.narrow(1, heads, kv));
  at::Tensor value = qkv.narrow(1, heads + kv, kv);
  if (kv != heads) {
    key = key.repeat_interleave(heads / kv, 1);
    value = value.repeat_interleave(heads / kv, 1);
  }
  const at::Tensor out = at::scaled_dot_product_attention(query, key, value, {}, 0.0, true)
                             .transpose(1, 2)
                             .reshape({rows, length, heads * dim});
  return x + at::linear(out, cast(layer.output)).to(at::kFloat);
}

at::Tensor TorchEngine::feed_forward(const Layer& layer, const at::Tensor& x) const {
  const at::Tensor up = at::linear(norm(x, layer.feed_forward_norm), cast(layer.gate_up));
  at::Tensor act;
  if (config_.feed_forward == FeedForward::swiglu) {
    const auto parts = up.chunk(2, -1);
    act = at::silu(parts[0]) * parts[1];
  } else {
    act = at::relu(up).square();
  }
  return x + at::linear(act, cast(layer.down)).to(at::kFloat);
}

at::Tensor TorchEngine::hidden(const at::Tensor& inputs) const {
  const int64_t length = inputs.size(1), dim = config_.head_dim();
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
  const at::Tensor exponent = at::arange(0, dim, 2, options) / static_cast<double>(dim);
  const at::Tensor frequency = at::pow(config_.rope_theta, exponent).reciprocal();
  const at::Tensor half = at::outer(at::arange(length, options), frequency);
  const at::Tensor angles = at::cat({half, half}, -1);  // [length, d]
  const at::Tensor cosine = angles.cos(), sine = angles.sin();
  at::Tensor x = at::embedding(embedding_, inputs);
  for (const Layer& layer : layers_) {
    x = feed_forward(layer, attention(layer, x, cosine, sine));
  }
  return norm(x, final_norm_);
}

at::Tensor TorchEngine::to_device(std::span<const int64_t> tokens, int64_t rows,
                                  int64_t row_tokens) const {
  return torch::from_blob(const_cast<int64_t*>(tokens.data()), {rows, row_tokens}, at::kLong)
      .to(device_, /*non_blocking=*/false, /*copy=*/true);
}

double TorchEngine::accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                         int64_t row_tokens, float scale) {
  ST_CHECK(gradients_ != nullptr);
  const at::Tensor ids = to_device(tokens, rows, row_tokens);
  const int64_t length = row_tokens - 1;
  const at::Tensor out = hidden(ids.narrow(1, 0, length)).flatten(0, 1);
  const at::Tensor targets = ids.narrow(1, 1, length).flatten();
  const at::Tensor loss = tiled_cross_entropy(out, cast(head_), targets);
  (loss * scale).backward();
  return loss.item<double>();
}

void TorchEngine::target_log_probs(std::span<const int64_t> tokens, int64_t rows,
                                   int64_t row_tokens, std::span<float> log_probs) {
  const at::NoGradGuard no_grad;
  const at::Tensor ids = to_device(tokens, rows, row_tokens);
  const int64_t length = row_tokens - 1;
  const at::Tensor out = hidden(ids.narrow(1, 0, length)).flatten(0, 1);
  const at::Tensor targets = ids.narrow(1, 1, length).flatten();
  const at::Tensor result = tiled_target_log_probs(out, cast(head_), targets).to(at::kCPU);
  std::memcpy(log_probs.data(), result.const_data_ptr<float>(), result.nbytes());
}

void TorchEngine::logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<float> logits) {
  const at::NoGradGuard no_grad;
  const at::Tensor out = hidden(to_device(tokens, rows, row_tokens)).flatten(0, 1);
  const at::Tensor result = at::mm(out, cast(head_).t()).to(at::kFloat).to(at::kCPU).contiguous();
  std::memcpy(logits.data(), result.const_data_ptr<float>(), result.nbytes());
}

}  // namespace smalltalk
