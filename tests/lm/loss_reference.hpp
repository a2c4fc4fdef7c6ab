// Random cases and the float64 reference of the fused projection and cross-entropy.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "fixtures.hpp"

namespace smalltalk {

struct LossShape {
  int64_t tokens, hidden, vocab;
};

struct LossCase {
  LossShape shape;
  std::vector<float> hidden, head;
  std::vector<int64_t> targets;
};

inline LossCase random_loss_case(LossShape shape, float spread) {
  LossCase c{shape, {}, {}, random_tokens(shape.tokens, shape.vocab, 3)};
  std::mt19937 generator(11);
  std::normal_distribution<float> normal(0, spread);
  for (auto [values, size] : {std::pair(&c.hidden, shape.tokens), {&c.head, shape.vocab}}) {
    values->resize(static_cast<size_t>(size * shape.hidden));
    for (float& value : *values) value = normal(generator);
  }
  return c;
}

struct LossReference {
  double loss = 0;
  std::vector<double> log_probs, d_hidden, d_head;
  std::vector<float> greedy;  // 1 where the target is the likeliest, else 0
};

inline LossReference loss_reference(const LossCase& c, double scale) {
  const auto [tokens, width, vocab] = c.shape;
  LossReference r;
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
    r.greedy.push_back(logits[c.targets[t]] >= maximum ? 1 : 0);
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

inline void expect_near(const std::vector<float>& values, const std::vector<double>& expected,
                        double tolerance) {
  ASSERT_EQ(values.size(), expected.size());
  double largest = 0;
  for (double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i], tolerance * largest) << i;
  }
}

}  // namespace smalltalk
