#include "lm/cpu/cpu_pass.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lm/cpu/cpu_loss.hpp"
#include "lm/cpu/elementwise.hpp"
#include "lm/cpu/gemm.hpp"

namespace smalltalk {

void RotaryTable::grow(const ModelConfig& config, int64_t min_length) {
  if (min_length <= length) return;
  const int64_t half = config.head_dim() / 2;
  length = min_length;
  cosine.resize(length * half);
  sine.resize(length * half);
  for (int64_t j = 0; j < half; ++j) {
    // In float32, as transformers does it, so that logits agree far into a sequence.
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(config.head_dim());
    const float frequency = 1.0F / std::pow(static_cast<float>(config.rope_theta), exponent);
    for (int64_t t = 0; t < length; ++t) {
      const float angle = static_cast<float>(t) * frequency;
      cosine[t * half + j] = std::cos(angle);
      sine[t * half + j] = std::sin(angle);
    }
  }
}

template <typename F>
void CpuPass::for_buffers(F&& take) {
  const int64_t tokens = rows_ * length_, hidden = config_.hidden_size;
  const int64_t out_width = config_.num_heads * config_.head_dim();
  // What is not kept has one buffer, of the first layer, that all share.
  const auto own = [&](float* Layer::*buffer, int64_t size, bool kept) {
    for (Layer& layer : layers_) {
      if (kept || &layer == layers_.data()) {
        take(layer.*buffer, size);
      } else {
        layer.*buffer = layers_[0].*buffer;
      }
    }
  };
  const bool all = keep_ == Keep::everything;
  const bool products = all || keep_ == Keep::products;
  own(&Layer::input, tokens * hidden, keep_ != Keep::nothing);
  own(&Layer::attention_norm, tokens * hidden, all);
  own(&Layer::attention_rstd, tokens, products);
  own(&Layer::qkv, tokens * qkv_width(config_), products);
  own(&Layer::attention, tokens * out_width, products);
  own(&Layer::lse, tokens * config_.num_heads, products);
  own(&Layer::middle, tokens * hidden, products);
  own(&Layer::feed_forward_norm, tokens * hidden, all);
  own(&Layer::feed_forward_rstd, tokens, products);
  own(&Layer::gate_up, tokens * gate_up_width(config_), products);
  own(&Layer::act, tokens * config_.intermediate_size, all);
  const int64_t routes =
      config_.merges_experts() ? max_segments(config_, rows_, length_) * config_.merged_experts : 0;
  own(&Layer::route, routes, keep_ != Keep::inputs);  // where it scores, routing() reads them
  take(last_, tokens * hidden);
  take(final_norm_, tokens * hidden);
  take(final_rstd_, tokens);
  int64_t scratch = attention_scratch_size(length_, config_.head_dim());
  if (keep_ == Keep::nothing) {
    scratch = std::max(scratch, log_probs_scratch_size(hidden));
  } else {
    take(d_residual_, tokens * hidden);
    take(d_hidden_, tokens * std::max(hidden, out_width));
    take(d_qkv_, tokens * qkv_width(config_));
    take(d_gate_up_, tokens * gate_up_width(config_));
    take(d_act_, tokens * config_.intermediate_size);
    take(d_route_, routes);
  }
  take(scratch_, scratch);
}

namespace {

// 16 floats are one cache line.
int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

int64_t CpuPass::memory_floats(const ModelConfig& config, int64_t rows, int64_t length, Keep keep) {
  CpuPass pass(config, {});
  pass.rows_ = rows;
  pass.length_ = length;
  pass.keep_ = keep;
  pass.layers_.resize(config.num_layers);
  int64_t floats = 0;
  pass.for_buffers([&](float*&, int64_t size) { floats += whole_lines(size); });
  if (config.merges_experts()) {
    floats += MergedExperts::memory_floats(config, max_segments(config, rows, length),
                                           keep != Keep::nothing);
  }
  return floats + 16;
}

void CpuPass::begin(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
                    const int32_t* starts, int64_t rows, int64_t length, Keep keep,
                    const Merging& merging) {
  parameters_ = parameters;
  rotary_ = &rotary;
  inputs_ = inputs;
  starts_ = starts;
  if (config_.merges_experts()) {
    experts_.begin(cut_into_segments(config_, rows, length, starts, merging.prompt_tokens));
    const bool in_training = config_.first_segment == FirstSegment::own;
    leaky_ = keep != Keep::nothing ? in_training : merging.leaky || merging.prompt_tokens > 0;
  }
  if (rows == rows_ && length == length_ && keep == keep_) return;
  rows_ = rows;
  length_ = length;
  keep_ = keep;
  layers_.assign(config_.num_layers, {});
  const int64_t floats = memory_floats(config_, rows, length, keep);
  if (arena_.size() < static_cast<size_t>(floats)) arena_.resize(floats);
  float* next = arena_.data();
  next += (16 - reinterpret_cast<uintptr_t>(next) / sizeof(float) % 16) % 16;
  for_buffers([&](float*& buffer, int64_t size) {
    buffer = next;
    next += whole_lines(size);
  });
}

AttentionShape CpuPass::attention_shape() const {
  return {rows_, length_, config_.num_heads, config_.num_kv_heads, config_.head_dim(), starts_};
}

void CpuPass::forward_attention(int64_t i) {
  const int64_t tokens = rows_ * length_, hidden = config_.hidden_size;
  const int64_t qkv = qkv_width(config_), heads = config_.num_heads;
  const int64_t out_width = heads * config_.head_dim();
  const LayerOffsets& at = layout_.layers[i];
  const Layer& layer = layers_[i];
  elementwise().rms_norm_forward(layer.input, parameters_ + at.attention_norm,
                                 static_cast<float>(config_.rms_norm_eps), tokens, hidden,
                                 layer.attention_norm, layer.attention_rstd);
  gemm_nt(tokens, qkv, hidden, 1, {layer.attention_norm, hidden}, {parameters_ + at.qkv, hidden},
          false, {layer.qkv, qkv});
  elementwise().rotate_heads(layer.qkv, qkv, tokens, length_, heads + config_.num_kv_heads,
                             config_.head_dim(), rotary_->cosine.data(), rotary_->sine.data(), 1);
  attention_forward(cpu_kernels(), attention_shape(), layer.qkv, layer.attention, layer.lse,
                    scratch_);
  std::memcpy(layer.middle, layer.input, tokens * hidden * sizeof(float));
  gemm_nt(tokens, hidden, out_width, 1, {layer.attention, out_width},
          {parameters_ + at.output, out_width}, true, {layer.middle, hidden});
}

void CpuPass::forward_feed_forward(int64_t i) {
  const int64_t tokens = rows_ * length_, hidden = config_.hidden_size;
  const int64_t gate_up = gate_up_width(config_);
  const LayerOffsets& at = layout_.layers[i];
  const Layer& layer = layers_[i];
  elementwise().rms_norm_forward(layer.middle, parameters_ + at.feed_forward_norm,
                                 static_cast<float>(config_.rms_norm_eps), tokens, hidden,
                                 layer.feed_forward_norm, layer.feed_forward_rstd);
  if (at.merges) {
    experts_.route(layer.feed_forward_norm, parameters_ + at.router, leaky_, layer.route);
    experts_.multiply(gate_ups(i), layer.route, layer.feed_forward_norm, false, layer.gate_up);
  } else {
    gemm_nt(tokens, gate_up, hidden, 1, {layer.feed_forward_norm, hidden},
            {parameters_ + at.gate_up, hidden}, false, {layer.gate_up, gate_up});
  }
  activate(layer);
}

ExpertMatrices CpuPass::gate_ups(int64_t i) const {
  return {gate_up_width(config_), config_.hidden_size, layout_.expert_stride,
          parameters_ + layout_.layers[i].gate_up};
}

ExpertMatrices CpuPass::downs(int64_t i) const {
  return {config_.hidden_size, config_.intermediate_size, layout_.expert_stride,
          parameters_ + layout_.layers[i].down};
}

void CpuPass::add_feed_forward(int64_t i, float* out) {
  const int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  const Layer& layer = layers_[i];
  if (layout_.layers[i].merges) {
    experts_.multiply(downs(i), layer.route, layer.act, true, out);
  } else {
    gemm_nt(rows_ * length_, hidden, width, 1, {layer.act, width},
            {parameters_ + layout_.layers[i].down, width}, true, {out, hidden});
  }
}

void CpuPass::activate(const Layer& layer) {
  const int64_t tokens = rows_ * length_, width = config_.intermediate_size;
  if (config_.feed_forward == FeedForward::swiglu) {
    elementwise().swiglu_forward(layer.gate_up, tokens, width, layer.act);
  } else {
    elementwise().relu2_forward(layer.gate_up, tokens * width, layer.act);
  }
}

void CpuPass::forward() {
  const int64_t tokens = rows_ * length_, hidden = config_.hidden_size;
  float* x = layers_[0].input;
  for (int64_t t = 0; t < tokens; ++t) {
    std::memcpy(x + t * hidden, parameters_ + layout_.embedding + inputs_[t] * hidden,
                hidden * sizeof(float));
  }
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    forward_attention(i);
    forward_feed_forward(i);
    const Layer& layer = layers_[i];
    float* next = i + 1 == config_.num_layers ? last_ : layers_[i + 1].input;
    std::memcpy(next, layer.middle, tokens * hidden * sizeof(float));
    add_feed_forward(i, next);
  }
  elementwise().rms_norm_forward(last_, parameters_ + layout_.final_norm,
                                 static_cast<float>(config_.rms_norm_eps), tokens, hidden,
                                 final_norm_, final_rstd_);
}

std::vector<RowRouting> CpuPass::routing(int64_t rows) const {
  std::vector<const float*> layers;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (layout_.layers[i].merges) layers.push_back(layers_[i].route);
  }
  return routing_by_row(experts_.segments(), config_.merged_experts, layers, rows, length_);
}

void CpuPass::backward_final_norm(float* gradients) {
  const int64_t tokens = rows_ * length_, hidden = config_.hidden_size;
  std::fill_n(d_residual_, tokens * hidden, 0.0F);
  elementwise().rms_norm_backward(last_, parameters_ + layout_.final_norm, final_rstd_, d_hidden_,
                                  tokens, hidden, d_residual_,
                                  gradients + (layout_.final_norm - layout_.blocks));
}

void CpuPass::backward_feed_forward(int64_t i, float* gradients) {
  const int64_t tokens = rows_ * length_, hidden = config_.hidden_size;
  const int64_t gate_up = gate_up_width(config_), width = config_.intermediate_size;
  const LayerOffsets& at = layout_.layers[i];
  const Layer& layer = layers_[i];
  const auto gradient_of = [&](int64_t offset) { return gradients + (offset - layout_.blocks); };
  if (at.merges) {
    std::fill_n(d_route_, experts_.num_segments() * config_.merged_experts, 0.0F);
    experts_.multiply_backward(downs(i), layer.route, layer.act, d_residual_, d_act_,
                               gradient_of(at.down), d_route_);
  } else {
    gemm_nn(tokens, width, hidden, 1, {d_residual_, hidden}, {parameters_ + at.down, width}, false,
            {d_act_, width});
    gemm_tn(hidden, width, tokens, 1, {d_residual_, hidden}, {layer.act, width}, true,
            {gradient_of(at.down), width});
  }
  if (config_.feed_forward == FeedForward::swiglu) {
    elementwise().swiglu_backward(layer.gate_up, d_act_, tokens, width, d_gate_up_);
  } else {
    elementwise().relu2_backward(layer.gate_up, d_act_, tokens * width, d_gate_up_);
  }
  if (at.merges) {
    experts_.multiply_backward(gate_ups(i), layer.route, layer.feed_forward_norm, d_gate_up_,
                               d_hidden_, gradient_of(at.gate_up), d_route_);
    experts_.route_backward(layer.feed_forward_norm, parameters_ + at.router, layer.route, d_route_,
                            gradient_of(at.router), d_hidden_);
    return;
  }
  gemm_tn(gate_up, hidden, tokens, 1, {d_gate_up_, gate_up}, {layer.feed_forward_norm, hidden},
          true, {gradient_of(at.gate_up), hidden});
  gemm_nn(tokens, hidden, gate_up, 1, {d_gate_up_, gate_up}, {parameters_ + at.gate_up, hidden},
          false, {d_hidden_, hidden});
}

void CpuPass::backward_layer(int64_t i, float* gradients) {
  const int64_t tokens = rows_ * length_, hidden = config_.hidden_size;
  const int64_t qkv = qkv_width(config_), heads = config_.num_heads;
  const int64_t out_width = heads * config_.head_dim();
  const LayerOffsets& at = layout_.layers[i];
  const Layer& layer = layers_[i];
  const auto gradient_of = [&](int64_t offset) { return gradients + (offset - layout_.blocks); };
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  if (keep_ == Keep::inputs) {
    forward_attention(i);
    forward_feed_forward(i);
  } else if (keep_ == Keep::products) {
    activate(layer);
    elementwise().rms_norm_forward(layer.middle, parameters_ + at.feed_forward_norm, eps, tokens,
                                   hidden, layer.feed_forward_norm, layer.feed_forward_rstd);
    elementwise().rms_norm_forward(layer.input, parameters_ + at.attention_norm, eps, tokens,
                                   hidden, layer.attention_norm, layer.attention_rstd);
  }

  backward_feed_forward(i, gradients);
  elementwise().rms_norm_backward(layer.middle, parameters_ + at.feed_forward_norm,
                                  layer.feed_forward_rstd, d_hidden_, tokens, hidden, d_residual_,
                                  gradient_of(at.feed_forward_norm));

  gemm_tn(hidden, out_width, tokens, 1, {d_residual_, hidden}, {layer.attention, out_width}, true,
          {gradient_of(at.output), out_width});
  gemm_nn(tokens, out_width, hidden, 1, {d_residual_, hidden}, {parameters_ + at.output, out_width},
          false, {d_hidden_, out_width});
  attention_backward(cpu_kernels(), attention_shape(), layer.qkv, layer.attention, layer.lse,
                     d_hidden_, d_qkv_, scratch_);
  elementwise().rotate_heads(d_qkv_, qkv, tokens, length_, heads + config_.num_kv_heads,
                             config_.head_dim(), rotary_->cosine.data(), rotary_->sine.data(), -1);
  gemm_tn(qkv, hidden, tokens, 1, {d_qkv_, qkv}, {layer.attention_norm, hidden}, true,
          {gradient_of(at.qkv), hidden});
  gemm_nn(tokens, hidden, qkv, 1, {d_qkv_, qkv}, {parameters_ + at.qkv, hidden}, false,
          {d_hidden_, hidden});
  elementwise().rms_norm_backward(layer.input, parameters_ + at.attention_norm,
                                  layer.attention_rstd, d_hidden_, tokens, hidden, d_residual_,
                                  gradient_of(at.attention_norm));
}

}  // namespace smalltalk
