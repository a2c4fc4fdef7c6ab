#include "cpu_block.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu_attention.hpp"
#include "cpu_loss.hpp"
#include "gemm.hpp"
#include "kernels.hpp"

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

void CpuBlock::reserve(int64_t rows, int64_t length, bool training) {
  if (rows == rows_ && length == length_ && training == training_) return;
  rows_ = rows;
  length_ = length;
  training_ = training;
  const int64_t tokens = rows * length, hidden = config_.hidden_size;
  const int64_t out_width = config_.num_heads * config_.head_dim();
  const int64_t layers = training ? config_.num_layers : 1;
  layers_.assign(layers, {});
  // First pass: measure; second pass: hand out. 16 floats are one cache line.
  for (const bool measure : {true, false}) {
    float* base = arena_.data();
    if (!measure) base += (16 - reinterpret_cast<uintptr_t>(base) / sizeof(float) % 16) % 16;
    int64_t used = 0;
    const auto take = [&](float*& pointer, int64_t size) {
      if (!measure) pointer = base + used;
      used += (size + 15) / 16 * 16;
    };
    for (Layer& layer : layers_) {
      take(layer.input, tokens * hidden);
      take(layer.attention_norm, tokens * hidden);
      take(layer.qkv, tokens * qkv_width(config_));
      take(layer.attention, tokens * out_width);
      take(layer.middle, tokens * hidden);
      take(layer.feed_forward_norm, tokens * hidden);
      take(layer.gate_up, tokens * gate_up_width(config_));
      take(layer.act, tokens * config_.intermediate_size);
      take(layer.attention_rstd, tokens);
      take(layer.feed_forward_rstd, tokens);
      take(layer.lse, tokens * config_.num_heads);
    }
    take(last_, tokens * hidden);
    take(final_norm_, tokens * hidden);
    take(final_rstd_, tokens);
    int64_t scratch = std::max(attention_scratch_size(length), log_probs_scratch_size());
    if (training) {
      take(d_residual_, tokens * hidden);
      take(d_hidden_, tokens * std::max(hidden, out_width));
      take(d_qkv_, tokens * qkv_width(config_));
      take(d_gate_up_, tokens * gate_up_width(config_));
      take(d_act_, tokens * config_.intermediate_size);
      scratch = std::max(scratch, loss_scratch_size(hidden, config_.vocab_size));
    }
    take(scratch_, scratch);
    if (measure && arena_.size() < static_cast<size_t>(used) + 16) arena_.resize(used + 16);
  }
}

void CpuBlock::forward(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
                       int64_t rows, int64_t length) {
  const int64_t tokens = rows * length, hidden = config_.hidden_size;
  const int64_t qkv = qkv_width(config_), gate_up = gate_up_width(config_);
  const int64_t width = config_.intermediate_size, heads = config_.num_heads;
  const int64_t out_width = heads * config_.head_dim();
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  const AttentionShape shape{rows, length, heads, config_.num_kv_heads, config_.head_dim()};

  float* x = layers_[0].input;
  for (int64_t t = 0; t < tokens; ++t) {
    std::memcpy(x + t * hidden, parameters + layout_.embedding + inputs[t] * hidden,
                hidden * sizeof(float));
  }
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const LayerOffsets& at = layout_.layers[i];
    const Layer& layer = layers_[training_ ? i : 0];
    rms_norm_forward(layer.input, parameters + at.attention_norm, eps, tokens, hidden,
                     layer.attention_norm, layer.attention_rstd);
    gemm_nt(tokens, qkv, hidden, 1, {layer.attention_norm, hidden}, {parameters + at.qkv, hidden},
            0, {layer.qkv, qkv});
    rotate_heads(layer.qkv, qkv, tokens, length, heads + config_.num_kv_heads, config_.head_dim(),
                 rotary.cosine.data(), rotary.sine.data(), 1);
    attention_forward(shape, layer.qkv, layer.attention, layer.lse, scratch_);
    std::memcpy(layer.middle, layer.input, tokens * hidden * sizeof(float));
    gemm_nt(tokens, hidden, out_width, 1, {layer.attention, out_width},
            {parameters + at.output, out_width}, 1, {layer.middle, hidden});

    rms_norm_forward(layer.middle, parameters + at.feed_forward_norm, eps, tokens, hidden,
                     layer.feed_forward_norm, layer.feed_forward_rstd);
    gemm_nt(tokens, gate_up, hidden, 1, {layer.feed_forward_norm, hidden},
            {parameters + at.gate_up, hidden}, 0, {layer.gate_up, gate_up});
    if (config_.feed_forward == FeedForward::swiglu) {
      swiglu_forward(layer.gate_up, tokens, width, layer.act);
    } else {
      relu2_forward(layer.gate_up, tokens * width, layer.act);
    }
    const bool last = i + 1 == config_.num_layers;
    float* next = last ? last_ : layers_[training_ ? i + 1 : 0].input;
    std::memcpy(next, layer.middle, tokens * hidden * sizeof(float));
    gemm_nt(tokens, hidden, width, 1, {layer.act, width}, {parameters + at.down, width}, 1,
            {next, hidden});
  }
  rms_norm_forward(last_, parameters + layout_.final_norm, eps, tokens, hidden, final_norm_,
                   final_rstd_);
}

// On entry d_hidden_ holds the gradient of final_norm_.
void CpuBlock::backward(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
                        int64_t rows, int64_t length, float* gradients) {
  const int64_t tokens = rows * length, hidden = config_.hidden_size;
  const int64_t qkv = qkv_width(config_), gate_up = gate_up_width(config_);
  const int64_t width = config_.intermediate_size, heads = config_.num_heads;
  const int64_t out_width = heads * config_.head_dim();
  const AttentionShape shape{rows, length, heads, config_.num_kv_heads, config_.head_dim()};

  std::fill_n(d_residual_, tokens * hidden, 0.0F);
  rms_norm_backward(last_, parameters + layout_.final_norm, final_rstd_, d_hidden_, tokens, hidden,
                    d_residual_, gradients + layout_.final_norm);
  for (int64_t i = config_.num_layers - 1; i >= 0; --i) {
    const LayerOffsets& at = layout_.layers[i];
    const Layer& layer = layers_[i];
    gemm_nn(tokens, width, hidden, 1, {d_residual_, hidden}, {parameters + at.down, width}, 0,
            {d_act_, width});
    gemm_tn(hidden, width, tokens, 1, {d_residual_, hidden}, {layer.act, width}, 1,
            {gradients + at.down, width});
    if (config_.feed_forward == FeedForward::swiglu) {
      swiglu_backward(layer.gate_up, d_act_, tokens, width, d_gate_up_);
    } else {
      relu2_backward(layer.gate_up, d_act_, tokens * width, d_gate_up_);
    }
    gemm_tn(gate_up, hidden, tokens, 1, {d_gate_up_, gate_up}, {layer.feed_forward_norm, hidden}, 1,
            {gradients + at.gate_up, hidden});
    gemm_nn(tokens, hidden, gate_up, 1, {d_gate_up_, gate_up}, {parameters + at.gate_up, hidden}, 0,
            {d_hidden_, hidden});
    rms_norm_backward(layer.middle, parameters + at.feed_forward_norm, layer.feed_forward_rstd,
                      d_hidden_, tokens, hidden, d_residual_, gradients + at.feed_forward_norm);

    gemm_tn(hidden, out_width, tokens, 1, {d_residual_, hidden}, {layer.attention, out_width}, 1,
            {gradients + at.output, out_width});
    gemm_nn(tokens, out_width, hidden, 1, {d_residual_, hidden},
            {parameters + at.output, out_width}, 0, {d_hidden_, out_width});
    attention_backward(shape, layer.qkv, layer.attention, layer.lse, d_hidden_, d_qkv_, scratch_);
    rotate_heads(d_qkv_, qkv, tokens, length, heads + config_.num_kv_heads, config_.head_dim(),
                 rotary.cosine.data(), rotary.sine.data(), -1);
    gemm_tn(qkv, hidden, tokens, 1, {d_qkv_, qkv}, {layer.attention_norm, hidden}, 1,
            {gradients + at.qkv, hidden});
    gemm_nn(tokens, hidden, qkv, 1, {d_qkv_, qkv}, {parameters + at.qkv, hidden}, 0,
            {d_hidden_, hidden});
    rms_norm_backward(layer.input, parameters + at.attention_norm, layer.attention_rstd, d_hidden_,
                      tokens, hidden, d_residual_, gradients + at.attention_norm);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    add_into(d_residual_ + t * hidden, hidden, gradients + layout_.embedding + inputs[t] * hidden);
  }
}

double CpuBlock::train(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
                       const int64_t* targets, int64_t rows, int64_t length, float scale,
                       float* gradients) {
  reserve(rows, length, true);
  forward(parameters, rotary, inputs, rows, length);
  const double loss = loss_and_gradients({rows * length, config_.hidden_size, config_.vocab_size},
                                         final_norm_, parameters + layout_.head, targets, scale,
                                         d_hidden_, gradients + layout_.head, scratch_);
  backward(parameters, rotary, inputs, rows, length, gradients);
  return loss;
}

void CpuBlock::target_log_probs(const float* parameters, const RotaryTable& rotary,
                                const int64_t* inputs, const int64_t* targets, int64_t rows,
                                int64_t length, float* log_probs) {
  reserve(rows, length, false);
  forward(parameters, rotary, inputs, rows, length);
  smalltalk::target_log_probs({rows * length, config_.hidden_size, config_.vocab_size}, final_norm_,
                              parameters + layout_.head, targets, log_probs, scratch_);
}

void CpuBlock::logits(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
                      int64_t rows, int64_t length, float* logits) {
  reserve(rows, length, false);
  forward(parameters, rotary, inputs, rows, length);
  gemm_nt(rows * length, config_.vocab_size, config_.hidden_size, 1,
          {final_norm_, config_.hidden_size}, {parameters + layout_.head, config_.hidden_size}, 0,
          {logits, config_.vocab_size});
}

}  // namespace smalltalk
