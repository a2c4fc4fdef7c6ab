// Decoding where experts are merged: by segments against whole passes of the other engine, and by
// the prompt against a model in float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "decoded_rows.hpp"
#include "merging_reference.hpp"
#include "smalltalk/lm/torch/decoder.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kSegment = 6;

ModelConfig one_layer_by_prefix() {
  ModelConfig config = merging(tiny_model(FeedForward::swiglu, true, 0), 3, kSegment);
  config.merged_layers = "1";
  config.routing = SegmentRouting::prefix;
  return config;
}

class MergedDecoderTest : public testing::TestWithParam<ModelConfig> {};

INSTANTIATE_TEST_SUITE_P(
    Kinds, MergedDecoderTest,
    testing::Values(merging(tiny_model(FeedForward::swiglu, true, 0), 4, kSegment),
                    merging(tiny_model(FeedForward::relu2, false, 2), 5, kSegment),
                    merging(tiny_model(FeedForward::swiglu, false, 1), 3, 1),
                    merging(tiny_model(FeedForward::swiglu, true, 0), 2, 100),
                    one_layer_by_prefix()));

TEST_P(MergedDecoderTest, BySegmentsLogitsAreThoseOfWholePasses) {
  const Transformer model(GetParam(), DeviceConfig(), 3);
  expect_decoded_as_whole(
      model, model, 2e-5, MergeBy::segments,
      {1, 3 * kSegment + 5, kSegment - 1, kSegment, kSegment + 1, 2 * kSegment});
}

// A text begins with the token that ends documents, where its first segment begins anyway.
TEST(MergedDecoder, ATextIsTheDocumentThatAWholePassSees) {
  ModelConfig config = merging(tiny_model(FeedForward::swiglu, true, 0), 4, kSegment);
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
    const MergingReference reference(model);
    const at::Tensor text = at::tensor(at::ArrayRef<int64_t>(texts[row]), at::kLong);
    const at::Tensor truth = reference.logits(text, {.prompt_tokens = prompts[row]})
                                 .narrow(0, prompts[row] - 1, kSteps + 1);
    const at::Tensor logits = at::tensor(at::ArrayRef<float>(found[row])).view({-1, kVocab});
    EXPECT_LT((logits - truth).abs().max().item<double>(), 2e-5 * truth.abs().max().item<double>());
    const std::vector<std::vector<float>> weights = decoder.expert_weights(row);
    // Of the prompt and of what follows, in each layer.
    ASSERT_EQ(2 * weights.size(), reference.routing().size());
    for (size_t layer = 0; layer < weights.size(); ++layer) {
      const at::Tensor difference =
          at::tensor(at::ArrayRef<float>(weights[layer])) - reference.routing()[2 * layer];
      EXPECT_LT(difference.abs().max().item<double>(), 1e-5);
    }
  }
}

TEST(MergedDecoder, WeightsOfSegmentsFollowTheText) {
  const Transformer model(merging(tiny_model(FeedForward::swiglu, true, 0), 4, kSegment),
                          DeviceConfig(), 3);
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
