#include "smalltalk/core/assignment/ngram_classifier.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "smalltalk/core/system/random.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kTokens = 16;

int64_t random_below(uint64_t seed, uint64_t text, uint64_t place, uint64_t limit) {
  return static_cast<int64_t>(derive_seed(seed, "token", text * kTokens + place) % limit);
}

int64_t best(const NgramClassifier& classifier, std::span<const int64_t> tokens, int64_t classes) {
  std::vector<float> scores(static_cast<size_t>(classes));
  classifier.rate(tokens, scores);
  return std::ranges::max_element(scores) - scores.begin();
}

// The share of new texts whose class it finds.
double accuracy(const NgramClassifier::Read& read, int64_t classes, int64_t read_tokens) {
  constexpr uint64_t kKnown = 2000, kNew = 500;
  std::vector<uint16_t> known;
  for (uint64_t i = 0; i < kKnown; ++i) known.push_back(static_cast<uint16_t>(i % classes));
  NgramClassifierOptions options;
  options.num_classes = classes;
  options.seed = 1;
  const NgramClassifier classifier(read, known, kTokens, options);
  int64_t right = 0;
  std::vector<int64_t> tokens(kTokens);
  for (uint64_t i = kKnown; i < kKnown + kNew; ++i) {
    read(i, tokens);
    const auto part = std::span<const int64_t>(tokens).first(static_cast<size_t>(read_tokens));
    right += best(classifier, part, classes) == static_cast<int64_t>(i % classes);
  }
  return static_cast<double>(right) / kNew;
}

TEST(NgramClassifier, TellsTextsByTheirWords) {
  // Half of a text's tokens are of its class, the others of all.
  const auto read = [](uint64_t text, std::span<int64_t> tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const int64_t any = random_below(1, text, i, 100);
      tokens[i] = i % 2 == 0 ? any : 100 + static_cast<int64_t>(text % 5) * 20 + any % 20;
    }
  };
  EXPECT_GT(accuracy(read, 5, kTokens), 0.99);
  EXPECT_GT(accuracy(read, 5, 2), 0.99);  // of which one is of the class
  EXPECT_LT(accuracy(read, 5, 1), 0.35);  // and nothing is known: 0.2 by chance
}

TEST(NgramClassifier, TellsTextsByTheOrderOfTheirWords) {
  // Both classes have the same tokens, equally often; only what follows what differs.
  const auto read = [](uint64_t text, std::span<int64_t> tokens) {
    const int64_t step = text % 2 == 0 ? 1 : 19;  // forwards and backwards in a circle of 20
    int64_t token = random_below(2, text, 0, 20);
    for (int64_t& each : tokens) {
      each = token;
      token = (token + step) % 20;
    }
  };
  EXPECT_GT(accuracy(read, 2, kTokens), 0.99);
}

// AdaGrad by hand: the first gradient of each weight is +-1/2, so that the first step is the rate;
// the second one's is sigmoid of the distance, over the root of the sum of both squares.
TEST(NgramClassifier, LearnsByAdaGrad) {
  const auto read = [](uint64_t, std::span<int64_t> tokens) { tokens[0] = 7; };
  const std::vector<uint16_t> classes = {1};
  NgramClassifierOptions options;
  options.num_classes = 2;
  options.rate = 0.1;
  options.epochs = 2;
  const NgramClassifier classifier(read, classes, 1, options);
  std::vector<float> scores(2);
  const std::vector<int64_t> text = {7};
  classifier.rate(text, scores);
  const double gradient = 1 / (1 + std::exp(0.2));
  const double expected = 0.1 + 0.1 * gradient / std::sqrt(0.25 + gradient * gradient);
  EXPECT_NEAR(scores[1], expected, 1e-6);
  EXPECT_NEAR(scores[0], -expected, 1e-6);
  EXPECT_EQ(ngram_flops(2, 1), 2);
  EXPECT_EQ(ngram_flops(2, 32), 2 * 63);
}

TEST(NgramClassifier, LearnsFromASample) {
  // What is not drawn is not read.
  std::vector<uint16_t> classes(1000);
  for (size_t i = 0; i < classes.size(); ++i) classes[i] = static_cast<uint16_t>(i % 2);
  std::vector<int> reads(classes.size());
  const auto read = [&](uint64_t text, std::span<int64_t> tokens) {
    ++reads[text];
    tokens[0] = static_cast<int64_t>(text % 2);
  };
  NgramClassifierOptions options;
  options.num_classes = 2;
  options.max_sample = 100;
  options.epochs = 3;
  const NgramClassifier classifier(read, classes, 1, options);
  EXPECT_EQ(std::ranges::count(reads, 3), 100);
  EXPECT_EQ(std::ranges::count(reads, 0), 900);
  EXPECT_EQ(best(classifier, std::vector<int64_t>{1}, 2), 1);
}

}  // namespace
}  // namespace smalltalk
