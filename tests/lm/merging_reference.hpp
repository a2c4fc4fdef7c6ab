// A model that merges experts, for tests to compare with: slow and plain, with autograd's
// gradients.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "smalltalk/lm/model/scoring.hpp"

namespace smalltalk {

// The same model in LibTorch's operations and float64, written after the paper's appendix A.
class MergingReference {
 public:
  static constexpr int64_t kEnd = 2;  // the token that ends a document

  explicit MergingReference(const Transformer& model) : config_(model.config()) {
    for (const auto& [name, values] : model.parameters()) {
      const at::Tensor flat =
          at::from_blob(const_cast<float*>(values.data()), {std::ssize(values)}, at::kFloat);
      weights_[name] = flat.to(at::kDouble).clone().requires_grad_();
    }
  }

  // -log p of a row's targets.
  at::Tensor losses(const at::Tensor& row, const Merging& merging) const {
    const at::Tensor inputs = row.narrow(0, 0, row.size(0) - 1);
    const at::Tensor targets = row.narrow(0, 1, row.size(0) - 1);
    return at::nll_loss(at::log_softmax(logits(inputs, merging), -1), targets, {}, 0);
  }
  // The mean of -log p over the targets of all rows, in training.
  at::Tensor loss(const std::vector<int64_t>& tokens, int64_t rows, int64_t row_tokens) const {
    const at::Tensor all =
        at::from_blob(const_cast<int64_t*>(tokens.data()), {rows, row_tokens}, at::kLong);
    at::Tensor sum = at::zeros({}, at::kDouble);
    for (int64_t row = 0; row < rows; ++row) {
      at::Tensor each = losses(all[row], {.leaky = config_.first_segment == FirstSegment::own});
      const at::Tensor inputs = all[row].narrow(0, 0, row_tokens - 1);
      const at::Tensor targets = all[row].narrow(0, 1, row_tokens - 1);
      if (config_.document_end >= 0) {
        const at::Tensor padding = (inputs == kEnd) & (targets == kEnd);
        each = at::where(padding, at::zeros_like(each), each);
      }
      sum = sum + each.sum();
    }
    return sum / static_cast<double>(rows * (row_tokens - 1));
  }
  const at::Tensor& weight(const std::string& name) const { return weights_.at(name); }
  // [T, V]
  at::Tensor logits(const at::Tensor& inputs, const Merging& merging) const {
    const int64_t hidden = config_.hidden_size, dim = config_.head_dim();
    const int64_t length = inputs.size(0), heads = config_.num_heads, kv = config_.num_kv_heads;
    routing_.clear();
    // Documents, and segments within them.
    std::vector<int64_t> document(length, 0), begins;
    std::vector<bool> is_first;
    int64_t start = 0;
    for (int64_t t = 0; t < length; ++t) {
      const bool begins_document =
          t == 0 || (config_.document_mask && inputs[t].item<int64_t>() == kEnd);
      if (begins_document) start = t;
      document[t] = start;
      const bool next = merging.prompt_tokens > 0 ? t - start == merging.prompt_tokens
                                                  : (t - start) % config_.segment_tokens == 0;
      if (begins_document || next) {
        begins.push_back(t);
        is_first.push_back(begins_document);
      }
    }
    begins.push_back(length);
    at::Tensor visible = at::zeros({length, length}, at::kBool);
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t u = document[t]; u <= t; ++u) visible[t][u] = true;
    }
    at::Tensor x = at::embedding(matrix("model.embed_tokens.weight", hidden), inputs);
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      const at::Tensor in = norm(x, prefix + "input_layernorm.weight");
      const auto project = [&](const char* name, int64_t count) {
        return at::matmul(in, matrix(prefix + "self_attn." + name + "_proj.weight", hidden).t())
            .view({length, count, dim})
            .transpose(0, 1);
      };
      const at::Tensor q = rotate(project("q", heads));
      const at::Tensor k = rotate(project("k", kv)).repeat_interleave(heads / kv, 0);
      const at::Tensor v = project("v", kv).repeat_interleave(heads / kv, 0);
      const at::Tensor scores =
          at::matmul(q, k.transpose(1, 2)) / std::sqrt(static_cast<double>(dim));
      const at::Tensor mixed =
          at::matmul(at::softmax(scores.masked_fill(visible.logical_not(), -INFINITY), -1), v);
      x = x + at::matmul(mixed.transpose(0, 1).reshape({length, -1}),
                         matrix(prefix + "self_attn.o_proj.weight", heads * dim).t());
      const at::Tensor normed = norm(x, prefix + "post_attention_layernorm.weight");
      x = x + (config_.merging_layers()[static_cast<size_t>(i)]
                   ? feed_forward(normed, prefix + "mlp.", begins, is_first, merging)
                   : plain_feed_forward(normed, prefix + "mlp."));
    }
    const char* head = config_.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    return at::matmul(norm(x, "model.norm.weight"), matrix(head, hidden).t());
  }
  // Of the newest pass, segment by segment within layers: the experts' weights, [E] each.
  const std::vector<at::Tensor>& routing() const { return routing_; }

 private:
  at::Tensor matrix(const std::string& name, int64_t columns) const {
    return weights_.at(name).view({-1, columns});
  }
  at::Tensor norm(const at::Tensor& x, const std::string& name) const {
    return x * (x.square().mean(-1, true) + config_.rms_norm_eps).rsqrt() * weights_.at(name);
  }
  at::Tensor rotate(const at::Tensor& x) const {  // [heads, T, d]
    const int64_t half = config_.head_dim() / 2, length = x.size(1);
    const auto doubles = at::TensorOptions().dtype(at::kDouble);
    const at::Tensor frequency =
        at::pow(config_.rope_theta, -at::arange(half, doubles) / static_cast<double>(half));
    const at::Tensor angle = at::outer(at::arange(length, doubles), frequency);
    const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
    return at::cat({a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()}, -1);
  }
  at::Tensor plain_feed_forward(const at::Tensor& x, const std::string& prefix) const {
    const int64_t hidden = config_.hidden_size;
    const at::Tensor up = at::matmul(x, matrix(prefix + "up_proj.weight", hidden).t());
    at::Tensor act = at::relu(up).square();
    if (config_.feed_forward == FeedForward::swiglu) {
      act = at::silu(at::matmul(x, matrix(prefix + "gate_proj.weight", hidden).t())) * up;
    }
    return at::matmul(act, matrix(prefix + "down_proj.weight", config_.intermediate_size).t());
  }
  at::Tensor feed_forward(const at::Tensor& x, const std::string& prefix,
                          const std::vector<int64_t>& begins, const std::vector<bool>& is_first,
                          const Merging& merging) const {
    const int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
    const at::Tensor router = matrix(prefix + "gate.weight", hidden);
    const auto segment = [&](size_t k) {
      return x.narrow(0, begins[k], begins[k + 1] - begins[k]);
    };
    const auto merged = [&](const at::Tensor& e, const std::string& name, int64_t columns) {
      at::Tensor sum = at::zeros({}, at::kDouble);
      for (int64_t i = 0; i < config_.merged_experts; ++i) {
        sum = sum + e[i] * matrix(prefix + "experts." + std::to_string(i) + "." + name, columns);
      }
      return sum;
    };
    std::vector<at::Tensor> outs;
    const bool by_first = merging.prompt_tokens > 0 || config_.routing == SegmentRouting::prefix;
    const bool knows_itself = merging.leaky || merging.prompt_tokens > 0;
    size_t first = 0;
    for (size_t k = 0; k + 1 < begins.size(); ++k) {
      if (is_first[k]) first = k;
      const at::Tensor mean = segment(is_first[k] || by_first ? first : k - 1).mean(0);
      at::Tensor e = at::softmax(at::matmul(router, mean), 0);
      if (is_first[k]) {
        e = knows_itself ? e.detach()
                         : at::full_like(e, 1 / static_cast<double>(config_.merged_experts));
      }
      routing_.push_back(e);
      const at::Tensor in = segment(k);
      const at::Tensor up = at::matmul(in, merged(e, "up_proj.weight", hidden).t());
      at::Tensor act = at::relu(up).square();
      if (config_.feed_forward == FeedForward::swiglu) {
        act = at::silu(at::matmul(in, merged(e, "gate_proj.weight", hidden).t())) * up;
      }
      outs.push_back(at::matmul(act, merged(e, "down_proj.weight", width).t()));
    }
    return at::cat(outs);
  }
  ModelConfig config_;
  std::map<std::string, at::Tensor> weights_;
  mutable std::vector<at::Tensor> routing_;
};

}  // namespace smalltalk
