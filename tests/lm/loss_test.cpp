// The fused projection and cross-entropy against a float64 reference.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "fixtures.hpp"
#include "lm/cpu_loss.hpp"

namespace smalltalk {
namespace {

struct Case {
  LossShape shape;
  std::vector<float> hidden, head;
  std::vector<int64_t> targets;
};

Case random_case(LossShape shape, float spread) {
  Case c{shape, {}, {}, random_tokens(shape.tokens, shape.vocab, 3)};
  std::mt19937 generator(11);
  std::normal_distribution<float> normal(0, spread);
  for (auto [values, size] : {std::pair(&c.hidden, shape.tokens), {&c.head, shape.vocab}}) {
    values->resize(static_cast<size_t>(size * shape.hidden));
    for (float& value : *values) value = normal(generator);
  }
  return c;
}

struct Reference {
  double loss = 0;
  std::vector<double> log_probs, d_hidden, d_head;
};

Reference reference(const Case& c, double scale) {
  const auto [tokens, width, vocab] = c.shape;
  Reference r;
  r.d_hidden.resize(c.hidden.size());
  r.d_head.resize(c.head.size());
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> logits(static_cast<size_t>(vocab));
    double maximum = -INFINITY, sum = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      for (int64_t i = 0; i < width; ++i) {
        logits[v] += static_cast<double>(c.hidden[t * width + i]) * c.head[v * width + i];
      }
      maximum = std::max(maximum, logits[v]);
    }
    for (double logit : logits) sum += std::exp(logit - maximum);
    r.log_probs.push_back(logits[c.targets[t]] - maximum - std::log(sum));
    r.loss -= r.log_probs.back();
    for (int64_t v = 0; v < vocab; ++v) {
      const double p = std::exp(logits[v] - maximum) / sum;
      const double d = scale * (p - (v == c.targets[t] ? 1 : 0));
      for (int64_t i = 0; i < width; ++i) {
        r.d_hidden[t * width + i] += d * c.head[v * width + i];
        r.d_head[v * width + i] += d * c.hidden[t * width + i];
      }
    }
  }
  return r;
}

void expect_near(const std::vector<float>& values, const std::vector<double>& expected,
                 double tolerance) {
  ASSERT_EQ(values.size(), expected.size());
  double largest = 0;
  for (double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i], tolerance * largest) << i;
  }
}

class LossTest : public testing::TestWithParam<std::pair<LossShape, float>> {};

TEST_P(LossTest, AgreesWithFloat64) {
  const auto [shape, spread] = GetParam();
  const Case c = random_case(shape, spread);
  const float scale = 1.0F / static_cast<float>(shape.tokens);
  const Reference r = reference(c, scale);

  std::vector<float> d_hidden(c.hidden.size()), d_head(c.head.size());
  std::vector<float> scratch(static_cast<size_t>(
      std::max(loss_scratch_size(shape.hidden, shape.vocab), log_probs_scratch_size())));
  const double loss = loss_and_gradients(shape, c.hidden.data(), c.head.data(), c.targets.data(),
                                         scale, d_hidden.data(), d_head.data(), scratch.data());
  EXPECT_NEAR(loss, r.loss, 1e-5 * std::abs(r.loss));
  expect_near(d_hidden, r.d_hidden, 1e-4);
  expect_near(d_head, r.d_head, 1e-4);

  std::vector<float> log_probs(static_cast<size_t>(shape.tokens));
  target_log_probs(shape, c.hidden.data(), c.head.data(), c.targets.data(), log_probs.data(),
                   scratch.data());
  expect_near(log_probs, r.log_probs, 1e-5);
}

// Tokens and vocabulary below, at and above the tiles; logits of a few hundred in the last case.
INSTANTIATE_TEST_SUITE_P(Shapes, LossTest,
                         testing::Values(std::pair(LossShape{5, 8, 2}, 1.0F),
                                         std::pair(LossShape{128, 16, 1024}, 0.5F),
                                         std::pair(LossShape{300, 16, 1025}, 0.5F),
                                         std::pair(LossShape{129, 8, 3000}, 1.0F),
                                         std::pair(LossShape{600, 4, 400}, 1.0F),
                                         std::pair(LossShape{40, 16, 50}, 8.0F)));

TEST(LossTest, GradientOfTheHeadIsAdded) {
  const LossShape shape{20, 8, 30};
  const Case c = random_case(shape, 1);
  std::vector<float> once(c.head.size()), twice(c.head.size()), d_hidden(c.hidden.size());
  std::vector<float> scratch(static_cast<size_t>(loss_scratch_size(8, 30)));
  for (std::vector<float>* sum : {&once, &twice, &twice}) {
    loss_and_gradients(shape, c.hidden.data(), c.head.data(), c.targets.data(), 1, d_hidden.data(),
                       sum->data(), scratch.data());
  }
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(twice[i], 2 * once[i], 1e-5);
}

}  // namespace
}  // namespace smalltalk
