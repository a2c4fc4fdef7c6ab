// Experts that are merged for each segment: against a model in float64 whose gradients are
// autograd's, against a plain model, and by what a token may know of later ones.
#include "lm/cpu/merged_experts.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "fixtures.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kRows = 3, kRowTokens = 24, kEnd = 2;

ModelConfig lory_model(FeedForward feed_forward, bool tied, int64_t kv_heads, int64_t experts,
                       int64_t segment) {
  ModelConfig config = tiny_model(feed_forward, tied, kv_heads);
  config.merged_experts = experts;
  config.segment_tokens = segment;
  return config;
}

// The same model in LibTorch's operations and float64, written after the paper's appendix A.
class Reference {
 public:
  Reference(const ModelConfig& config, const Transformer& model) : config_(config.resolved()) {
    for (const auto& [name, values] : model.parameters()) {
      const at::Tensor flat =
          at::from_blob(const_cast<float*>(values.data()), {std::ssize(values)}, at::kFloat);
      weights_[name] = flat.to(at::kDouble).clone().requires_grad_();
    }
  }

  // The mean of -log p over the targets of all rows.
  at::Tensor loss(const std::vector<int64_t>& tokens) const {
    const at::Tensor all =
        at::from_blob(const_cast<int64_t*>(tokens.data()), {kRows, kRowTokens}, at::kLong);
    at::Tensor sum = at::zeros({}, at::kDouble);
    for (int64_t row = 0; row < kRows; ++row) {
      const at::Tensor inputs = all[row].narrow(0, 0, kRowTokens - 1);
      const at::Tensor targets = all[row].narrow(0, 1, kRowTokens - 1);
      at::Tensor each = at::nll_loss(at::log_softmax(logits(inputs), -1), targets, {}, 0);
      if (config_.document_end >= 0) {
        const at::Tensor padding = (inputs == kEnd) & (targets == kEnd);
        each = at::where(padding, at::zeros_like(each), each);
      }
      sum = sum + each.sum();
    }
    return sum / static_cast<double>(kRows * (kRowTokens - 1));
  }
  const at::Tensor& weight(const std::string& name) const { return weights_.at(name); }

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
  at::Tensor feed_forward(const at::Tensor& x, const std::string& prefix,
                          const std::vector<int64_t>& begins,
                          const std::vector<bool>& is_first) const {
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
    for (size_t k = 0; k + 1 < begins.size(); ++k) {
      const at::Tensor mean = segment(is_first[k] ? k : k - 1).mean(0);
      at::Tensor e = at::softmax(at::matmul(router, mean), 0);
      if (is_first[k]) e = e.detach();
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
  at::Tensor logits(const at::Tensor& inputs) const {
    const int64_t hidden = config_.hidden_size, dim = config_.head_dim();
    const int64_t length = inputs.size(0), heads = config_.num_heads, kv = config_.num_kv_heads;
    // Documents, and segments within them.
    std::vector<int64_t> document(length, 0), begins;
    std::vector<bool> is_first;
    int64_t start = 0;
    for (int64_t t = 0; t < length; ++t) {
      const bool begins_document =
          t == 0 || (config_.document_mask && inputs[t].item<int64_t>() == kEnd);
      if (begins_document) start = t;
      document[t] = start;
      if ((t - start) % config_.segment_tokens == 0) {
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
      x = x + feed_forward(norm(x, prefix + "post_attention_layernorm.weight"), prefix + "mlp.",
                           begins, is_first);
    }
    const char* head = config_.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    return at::matmul(norm(x, "model.norm.weight"), matrix(head, hidden).t());
  }

  ModelConfig config_;
  std::map<std::string, at::Tensor> weights_;
};

TEST(MergedExperts, GradientsAgreeWithAutogradInFloat64) {
  ModelConfig packed = lory_model(FeedForward::swiglu, true, 1, 3, 4);
  packed.document_end = kEnd;
  packed.document_mask = true;
  for (const ModelConfig& config : {lory_model(FeedForward::swiglu, true, 0, 4, 8),
                                    lory_model(FeedForward::relu2, false, 2, 5, 5),
                                    lory_model(FeedForward::swiglu, false, 0, 2, 100), packed}) {
    SCOPED_TRACE(std::to_string(config.merged_experts));
    std::vector<int64_t> tokens = random_tokens(kRows * kRowTokens, 37, 5);
    for (const size_t end : {3, 9, 10, 11, 40, 60}) tokens[end] = kEnd;
    for (const int64_t threads : {1, 2}) {
      DeviceConfig device;
      device.threads = threads;
      Transformer model(config, device, 3);
      const Reference reference(config, model);
      double loss = 0;
      const auto gradients = loss_gradients(model, tokens, kRows, kRowTokens, &loss);
      at::Tensor expected = reference.loss(tokens);
      expected.backward();
      EXPECT_NEAR(loss, expected.item<double>(), 1e-5);
      for (const auto& [name, values] : gradients) {
        // One segment alone has no router's gradient.
        const at::Tensor& weight = reference.weight(name);
        const at::Tensor flat = weight.grad().defined() ? weight.grad() : at::zeros_like(weight);
        const auto* truth = flat.const_data_ptr<double>();
        const double scale = flat.abs().max().item<double>();
        for (size_t i = 0; i < values.size(); ++i) {
          ASSERT_NEAR(values[i], truth[i], 2e-5 * scale + 1e-7) << name << " " << i;
        }
      }
    }
  }
}

TEST(MergedExperts, SegmentsBeginWithDocuments) {
  const auto cut = [](int64_t rows, int64_t length, int64_t segment, const int32_t* starts) {
    std::vector<std::array<int64_t, 3>> found;
    for (const Segment& s : cut_into_segments(rows, length, segment, starts)) {
      found.push_back({s.begin, s.size, s.source});
    }
    return found;
  };
  using Found = std::vector<std::array<int64_t, 3>>;
  EXPECT_EQ(cut(2, 5, 2, nullptr),
            (Found{{0, 2, 0}, {2, 2, 0}, {4, 1, 1}, {5, 2, 3}, {7, 2, 3}, {9, 1, 4}}));
  EXPECT_EQ(cut(1, 3, 8, nullptr), (Found{{0, 3, 0}}));
  const std::vector<int32_t> starts = {0, 0, 0, 3, 3, 5, 6, 6};
  EXPECT_EQ(cut(1, 8, 2, starts.data()),
            (Found{{0, 2, 0}, {2, 1, 0}, {3, 2, 2}, {5, 1, 3}, {6, 2, 4}}));
}

std::vector<float> scores_of(const Transformer& model, const std::vector<int64_t>& tokens) {
  const RowSource rows{std::ssize(tokens), [&](int64_t, int64_t, std::span<int64_t> out) {
                         std::ranges::copy(tokens, out.begin());
                       }};
  std::vector<float> scores;
  visit_log_probs(model, rows, 0, 1, [&](const LogProbs& piece) {
    scores.assign(piece.values.begin(), piece.values.end());
  });
  return scores;
}

// Where it is scored, no token's probability depends on later ones, in the first segment either;
// and it does depend on the segment before.
TEST(MergedExperts, ScoresAreCausal) {
  const Transformer model(lory_model(FeedForward::swiglu, true, 0, 4, 6), DeviceConfig(), 3);
  const std::vector<int64_t> tokens = random_tokens(32, 37, 7);
  const std::vector<float> before = scores_of(model, tokens);
  for (int64_t changed = 0; changed < 32; ++changed) {
    std::vector<int64_t> other = tokens;
    other[changed] = (other[changed] + 1) % 37;
    const std::vector<float> after = scores_of(model, other);
    for (int64_t t = 0; t + 1 < changed; ++t) ASSERT_EQ(after[t], before[t]) << changed;
    if (changed > 0) {
      EXPECT_NE(after[changed - 1], before[changed - 1]);
    }
  }
}

// Experts that are alike are one, whatever the router says.
TEST(MergedExperts, AlikeTheyAreAPlainModel) {
  ModelConfig config = lory_model(FeedForward::swiglu, true, 0, 4, 6);
  Transformer merged(config, DeviceConfig(), 3);
  config.merged_experts = 0;
  Transformer plain(config, DeviceConfig(), 3);
  std::vector<float> weights = merged.weights(), plain_weights = plain.weights();
  const auto copy = [&](const std::string& from, const std::string& to) {
    const auto values = merged.parameters().at(from);
    const auto target = plain.parameters().at(to);
    std::ranges::copy(
        values, plain_weights.begin() +
                    (target.data() - plain.parameters().at("model.embed_tokens.weight").data()));
  };
  for (const auto& [name, values] : merged.parameters()) {
    const size_t at = name.find("mlp.experts.");
    if (name.find("mlp.gate.") != std::string::npos) continue;
    if (at == std::string::npos) {
      copy(name, name);
      continue;
    }
    const size_t dot = name.find('.', at + 12);
    const std::string rest = name.substr(dot + 1), prefix = name.substr(0, at + 12);
    const auto first = merged.parameters().at(prefix + "0." + rest);
    std::ranges::copy(
        first, weights.begin() +
                   (values.data() - merged.parameters().at("model.embed_tokens.weight").data()));
    copy(prefix + "0." + rest, name.substr(0, at) + "mlp." + rest);
  }
  merged.set_weights(weights);
  plain.set_weights(plain_weights);
  const std::vector<int64_t> tokens = random_tokens(32, 37, 7);
  const auto a = scores_of(merged, tokens), b = scores_of(plain, tokens);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 2e-5) << i;
}

TEST(MergedExperts, TrainResumeAndLoadAsOtherModels) {
  const TemporaryFolder folder;
  const ModelConfig config = lory_model(FeedForward::relu2, true, 0, 4, 6);
  TrainConfig train;
  train.steps = 40;
  train.batch_size = 8;
  train.lr = 1e-2;
  train.save_interval = 15;
  const auto trained = [&](const std::string& name, std::vector<int64_t> lasts,
                           Recompute recompute) {
    train.recompute = recompute;
    double loss = 0;
    for (const int64_t last : lasts) {
      Transformer model(config, DeviceConfig(), 1);
      TrainOptions options;
      options.name = "test";
      options.folder = folder.path() / name;
      options.show_progress = false;
      Trainer trainer(model, train, options);
      trainer.resume();
      loss = trainer.run(random_rows(25, 5), last).last_loss;
      if (last == 40) trainer.save_model(folder.path() / name, {});
    }
    EXPECT_LT(loss, std::log(5.0) + 0.2);
    return Transformer::load(folder.path() / name, DeviceConfig()).weights();
  };
  const auto whole = trained("whole", {40}, Recompute::none);
  EXPECT_EQ(trained("cut", {20, 40}, Recompute::none), whole);
  EXPECT_EQ(trained("selective", {40}, Recompute::selective), whole);
  EXPECT_EQ(trained("full", {40}, Recompute::full), whole);
  EXPECT_EQ(static_cast<int64_t>(whole.size()), parameter_count(config));
}

}  // namespace
}  // namespace smalltalk
