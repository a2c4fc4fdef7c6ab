// Decoding where experts are merged: by segments against whole passes of the other engine, and by
// the prompt against a model in float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "decoded_rows.hpp"
#include "smalltalk/lm/torch/decoder.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kSegment = 6;

ModelConfig merging_model(FeedForward feed_forward, bool tied, int64_t kv_heads, int64_t experts,
                          int64_t segment_tokens = kSegment) {
  ModelConfig config = tiny_model(feed_forward, tied, kv_heads);
  config.merged_experts = experts;
  config.segment_tokens = segment_tokens;
  return config;
}

ModelConfig one_layer_by_prefix() {
  ModelConfig config = merging_model(FeedForward::swiglu, true, 0, 3);
  config.merged_layers = "1";
  config.routing = SegmentRouting::prefix;
  return config;
}

class MergedDecoderTest : public testing::TestWithParam<ModelConfig> {};

INSTANTIATE_TEST_SUITE_P(Kinds, MergedDecoderTest,
                         testing::Values(merging_model(FeedForward::swiglu, true, 0, 4),
                                         merging_model(FeedForward::relu2, false, 2, 5),
                                         merging_model(FeedForward::swiglu, false, 1, 3, 1),
                                         merging_model(FeedForward::swiglu, true, 0, 2, 100),
                                         one_layer_by_prefix()));

TEST_P(MergedDecoderTest, BySegmentsLogitsAreThoseOfWholePasses) {
  const Transformer model(GetParam(), DeviceConfig(), 3);
  expect_decoded_as_whole(
      model, model, 2e-5, MergeBy::segments,
      {1, 3 * kSegment + 5, kSegment - 1, kSegment, kSegment + 1, 2 * kSegment});
}

// A text begins with the token that ends documents, where its first segment begins anyway.
TEST(MergedDecoder, ATextIsTheDocumentThatAWholePassSees) {
  ModelConfig config = merging_model(FeedForward::swiglu, true, 0, 4);
  config.document_end = 2;
  config.document_mask = true;
  const Transformer model(config, DeviceConfig(), 3);
  std::vector<int64_t> tokens = random_tokens(25, 37, 5);
  for (int64_t& token : tokens) token = token == 2 ? 3 : token;
  tokens[0] = 2;
  const std::vector<float> whole = model.logits(tokens, 1, 25);
  Decoder decoder(model, 1, 25, MergeBy::segments);
  decoder.begin(0, std::span(tokens).first(9));
  for (size_t t = 9; t < tokens.size(); ++t) {
    const std::vector<float> found = decoder.step(std::span(tokens).subspan(t, 1));
    for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], whole[t * 37 + i], 1e-4);
  }
}

// A model and one sequence in LibTorch's operations and float64. The experts' weights come from
// the mean over the tokens of the prompt.
class DoublePass {
 public:
  DoublePass(const Transformer& model, int64_t prompt) : config_(model.config()), prompt_(prompt) {
    for (const auto& [name, values] : model.parameters()) {
      weights_[name] =
          at::from_blob(const_cast<float*>(values.data()), {std::ssize(values)}, at::kFloat)
              .to(at::kDouble);
    }
  }

  // [T, V]
  at::Tensor logits(const std::vector<int64_t>& tokens) {
    const int64_t hidden = config_.hidden_size, heads = config_.num_heads;
    const int64_t kv = config_.num_kv_heads, dim = config_.head_dim();
    const int64_t length = std::ssize(tokens);
    const at::Tensor ids = at::tensor(at::ArrayRef<int64_t>(tokens), at::kLong);
    const at::Tensor later = at::ones({length, length}, at::kBool).triu(1);
    at::Tensor x = at::embedding(matrix("model.embed_tokens.weight", hidden), ids);
    chosen.clear();
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".";
      const at::Tensor in = norm(x, prefix + "input_layernorm.weight");
      const auto project = [&](const char* name, int64_t count) {
        return at::matmul(in, matrix(prefix + "self_attn." + name + "_proj.weight", hidden).t())
            .view({length, count, dim})
            .transpose(0, 1);
      };
      const at::Tensor q = turn(project("q", heads));
      const at::Tensor k = turn(project("k", kv)).repeat_interleave(heads / kv, 0);
      const at::Tensor v = project("v", kv).repeat_interleave(heads / kv, 0);
      const at::Tensor scores = at::matmul(q, k.transpose(1, 2)) / std::sqrt(double(dim));
      const at::Tensor mixed = at::matmul(at::softmax(scores.masked_fill(later, -INFINITY), -1), v);
      x = x + at::matmul(mixed.transpose(0, 1).reshape({length, -1}),
                         matrix(prefix + "self_attn.o_proj.weight", heads * dim).t());
      x = x + feed_forward(norm(x, prefix + "post_attention_layernorm.weight"), prefix + "mlp.");
    }
    const char* head = config_.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    return at::matmul(norm(x, "model.norm.weight"), matrix(head, hidden).t());
  }

  std::vector<at::Tensor> chosen;  // of each layer, [E]

 private:
  at::Tensor matrix(const std::string& name, int64_t columns) const {
    return weights_.at(name).view({-1, columns});
  }
  at::Tensor norm(const at::Tensor& x, const std::string& name) const {
    return x / (x.square().mean(-1, true) + config_.rms_norm_eps).sqrt() * weights_.at(name);
  }
  // Pairs of numbers as complex ones, turned by e^(i angle).
  at::Tensor turn(const at::Tensor& x) const {  // [heads, T, d]
    const int64_t half = config_.head_dim() / 2;
    const auto doubles = at::TensorOptions().dtype(at::kDouble);
    const at::Tensor frequency =
        at::pow(config_.rope_theta, -at::arange(half, doubles) / static_cast<double>(half));
    const at::Tensor angle = at::outer(at::arange(x.size(1), doubles), frequency);
    const at::Tensor turned = at::complex(x.narrow(-1, 0, half), x.narrow(-1, half, half)) *
                              at::polar(at::ones_like(angle), angle);
    return at::cat({at::real(turned), at::imag(turned)}, -1);
  }
  at::Tensor feed_forward(const at::Tensor& x, const std::string& prefix) {
    const int64_t hidden = config_.hidden_size;
    if (!weights_.contains(prefix + "gate.weight")) {
      const at::Tensor plain_up = at::matmul(x, matrix(prefix + "up_proj.weight", hidden).t());
      const at::Tensor gate = at::matmul(x, matrix(prefix + "gate_proj.weight", hidden).t());
      return at::matmul(at::silu(gate) * plain_up,
                        matrix(prefix + "down_proj.weight", config_.intermediate_size).t());
    }
    const at::Tensor mean = x.narrow(0, 0, prompt_).mean(0);
    const at::Tensor e = at::softmax(at::matmul(matrix(prefix + "gate.weight", hidden), mean), 0);
    chosen.push_back(e);
    const auto merged = [&](const std::string& name, int64_t columns) {
      at::Tensor sum = at::zeros({}, at::kDouble);
      for (int64_t i = 0; i < config_.merged_experts; ++i) {
        sum = sum + e[i] * matrix(prefix + "experts." + std::to_string(i) + "." + name, columns);
      }
      return sum.t();
    };
    const at::Tensor up = at::matmul(x, merged("up_proj.weight", hidden));
    const at::Tensor act = config_.feed_forward == FeedForward::relu2
                               ? at::relu(up).square()
                               : at::silu(at::matmul(x, merged("gate_proj.weight", hidden))) * up;
    return at::matmul(act, merged("down_proj.weight", config_.intermediate_size));
  }

  ModelConfig config_;
  int64_t prompt_;
  std::map<std::string, at::Tensor> weights_;
};

TEST_P(MergedDecoderTest, ByThePromptOneChoiceHoldsForTheWholeText) {
  const Transformer model(GetParam(), DeviceConfig(), 3);
  constexpr int64_t kSteps = 15, kVocab = 37;
  const std::vector<int64_t> prompts = {1, 5, 6, 23};
  const int64_t rows = std::ssize(prompts);
  // The first row held another text before.
  Decoder decoder(model, rows, 40);
  decoder.begin(0, random_tokens(9, kVocab, 40));
  decoder.step(random_tokens(rows, kVocab, 41));
  std::vector<std::vector<int64_t>> texts;
  std::vector<std::vector<float>> found(prompts.size());
  for (int64_t row = rows - 1; row >= 0; --row) {
    texts.insert(texts.begin(), random_tokens(prompts[row], kVocab, static_cast<uint64_t>(row)));
    found[row] = decoder.begin(row, texts.front());
  }
  for (int64_t step = 0; step < kSteps; ++step) {
    const std::vector<int64_t> next = random_tokens(rows, kVocab, 100 + uint64_t(step));
    const std::vector<float> logits = decoder.step(next);
    for (int64_t row = 0; row < rows; ++row) {
      texts[row].push_back(next[row]);
      found[row].insert(found[row].end(), logits.begin() + row * kVocab,
                        logits.begin() + (row + 1) * kVocab);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    SCOPED_TRACE(prompts[row]);
    DoublePass reference(model, prompts[row]);
    const at::Tensor truth = reference.logits(texts[row]).narrow(0, prompts[row] - 1, kSteps + 1);
    const at::Tensor logits = at::tensor(at::ArrayRef<float>(found[row])).view({-1, kVocab});
    EXPECT_LT((logits - truth).abs().max().item<double>(), 2e-5 * truth.abs().max().item<double>());
    const std::vector<std::vector<float>> weights = decoder.expert_weights(row);
    ASSERT_EQ(weights.size(), reference.chosen.size());
    for (size_t layer = 0; layer < weights.size(); ++layer) {
      const at::Tensor difference =
          at::tensor(at::ArrayRef<float>(weights[layer])) - reference.chosen[layer];
      EXPECT_LT(difference.abs().max().item<double>(), 1e-5);
    }
  }
}

TEST(MergedDecoder, WeightsOfSegmentsFollowTheText) {
  const Transformer model(merging_model(FeedForward::swiglu, true, 0, 4), DeviceConfig(), 3);
  Decoder decoder(model, 1, 40, MergeBy::segments);
  decoder.begin(0, random_tokens(kSegment, 37, 1));
  const std::vector<std::vector<float>> alike(2, std::vector<float>(4, 0.25F));
  EXPECT_EQ(decoder.expert_weights(0), alike);
  decoder.step(random_tokens(1, 37, 2));
  const auto second = decoder.expert_weights(0);
  EXPECT_NE(second, alike);
  for (int64_t t = 1; t < kSegment; ++t) decoder.step(random_tokens(1, 37, 2));
  EXPECT_EQ(decoder.expert_weights(0), second);
  decoder.step(random_tokens(1, 37, 2));
  EXPECT_NE(decoder.expert_weights(0), second);
}

TEST(MergedDecoder, APlainModelHasNoWeightsOfExperts) {
  const Transformer model(tiny_model(), DeviceConfig(), 3);
  Decoder decoder(model, 1, 4);
  decoder.begin(0, random_tokens(1, 37, 1));
  EXPECT_TRUE(decoder.expert_weights(0).empty());
}

}  // namespace
}  // namespace smalltalk
