// Decoding with a cache against whole forward passes, and sampling against its definition.
#include "smalltalk/lm/torch/decoder.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "decoded_rows.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/sampling.hpp"

namespace smalltalk {
namespace {

class DecoderTest : public testing::TestWithParam<ModelConfig> {};

INSTANTIATE_TEST_SUITE_P(Kinds, DecoderTest,
                         testing::Values(tiny_model(FeedForward::swiglu, true),
                                         tiny_model(FeedForward::swiglu, false, 2),
                                         tiny_model(FeedForward::relu2, true, 1)));

// The whole passes are those of the other engine.
TEST_P(DecoderTest, LogitsWithCacheEqualThoseWithout) {
  const Transformer model(GetParam(), DeviceConfig(), 3);
  expect_decoded_as_whole(model, model, 1e-5);
}

TEST(Decoder, RefusesWhatDoesNotFit) {
  const Transformer model(tiny_model(), DeviceConfig(), 3);
  Decoder decoder(model, 2, 4);
  EXPECT_THROW(decoder.begin(0, random_tokens(5, 37, 1)), Error);
  EXPECT_THROW(decoder.begin(0, std::vector<int64_t>{37}), Error);
  decoder.begin(0, random_tokens(3, 37, 1));
  decoder.step(random_tokens(2, 37, 2));
  EXPECT_THROW(decoder.step(random_tokens(2, 37, 2)), Error);
  decoder.end(0);
  decoder.step(random_tokens(2, 37, 2));
}

// How often each token comes for evenly spread draws.
std::vector<double> shares(const std::vector<float>& logits, const SamplingOptions& options) {
  constexpr int kDraws = 100'000;
  std::vector<double> result(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    result[static_cast<size_t>(sample_token(logits, options, (i + 0.5) / kDraws))] += 1.0 / kDraws;
  }
  return result;
}

TEST(Sampling, FollowsItsDefinition) {
  // Probabilities 0.4, 0.3, 0.2, 0.1 for the tokens 2, 0, 3, 1.
  const std::vector<float> logits = {std::log(0.3F), std::log(0.1F), std::log(0.4F),
                                     std::log(0.2F)};
  const auto expect = [&](const SamplingOptions& options, const std::vector<double>& expected) {
    const std::vector<double> found = shares(logits, options);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-4) << i;
  };
  expect({}, {0.3, 0.1, 0.4, 0.2});
  expect({.temperature = 0}, {0, 0, 1, 0});
  expect({.temperature = 0.5}, {9.0 / 30, 1.0 / 30, 16.0 / 30, 4.0 / 30});
  expect({.top_k = 2}, {3.0 / 7, 0, 4.0 / 7, 0});
  expect({.top_k = 9}, {0.3, 0.1, 0.4, 0.2});
  expect({.top_p = 0.41}, {3.0 / 7, 0, 4.0 / 7, 0});
  expect({.top_p = 0.39}, {0, 0, 1, 0});
  expect({.top_p = 1e-9}, {0, 0, 1, 0});
  expect({.top_k = 3, .top_p = 0.75}, {3.0 / 7, 0, 4.0 / 7, 0});  // 4/9 + 3/9 > 0.75
}

TEST(Sampling, OnTheEdgeBetweenTwoTokens) {
  const std::vector<float> halves = {0, 0};  // exp(0) and their sum are exact
  // The first alone reaches top_p, exactly.
  EXPECT_EQ(sample_token(halves, {.top_p = 0.5}, 0.999), 0);
  EXPECT_EQ(sample_token(halves, {.top_p = 0.501}, 0.999), 1);
  // A draw of p is behind the tokens of probability p.
  EXPECT_EQ(sample_token(halves, {}, 0.5), 1);
  EXPECT_EQ(sample_token(halves, {}, 0), 0);
}

TEST(Sampling, TheLowestIdWinsTiesAndNonsenseIsRefused) {
  EXPECT_EQ(sample_token(std::vector<float>{1, 2, 2}, {.temperature = 0}, 0.5), 1);
  EXPECT_EQ(sample_token(std::vector<float>{1, 2, 2}, {.top_k = 1}, 0.999), 1);
  EXPECT_EQ(sample_token(std::vector<float>{-1000, 1000}, {.temperature = 1e-3}, 0.999), 1);
  EXPECT_THROW(sample_token(std::vector<float>{1, NAN}, {}, 0.5), Error);
  EXPECT_THROW(check_sampling({.temperature = -1}), Error);
  EXPECT_THROW(check_sampling({.temperature = NAN}), Error);
  EXPECT_THROW(check_sampling({.top_k = -1}), Error);
  EXPECT_THROW(check_sampling({.top_p = 0}), Error);
  EXPECT_THROW(check_sampling({.top_p = 1.1}), Error);
}

}  // namespace
}  // namespace smalltalk
