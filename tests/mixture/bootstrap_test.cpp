#include "smalltalk/mixture/evaluation/bootstrap.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kResamples = 4000;

std::vector<uint64_t> each_its_own(size_t count) {
  std::vector<uint64_t> documents(count);
  for (size_t i = 0; i < count; ++i) documents[i] = i;
  return documents;
}

// Of a mean of independent values the interval is the well-known mean +- 1.96 s / sqrt(n).
TEST(Bootstrap, OfAMeanIsTheNormalInterval) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal(0.3, 2);
  std::vector<double> values(500), weights(500, 1.0);
  double sum = 0, squares = 0;
  for (double& value : values) {
    value = normal(random);
    sum += value;
    squares += value * value;
  }
  const double mean = sum / 500;
  const double error = std::sqrt((squares / 500 - mean * mean) / 500);
  const Interval found = bootstrap_ratio(values, weights, each_its_own(500), kResamples, 7);
  EXPECT_NEAR(found.mean, mean, 1e-12);
  EXPECT_NEAR(found.low, mean - 1.96 * error, 0.12 * error);
  EXPECT_NEAR(found.high, mean + 1.96 * error, 0.12 * error);
}

// Ten equal items a document say no more than one: the interval is that of the documents.
TEST(Bootstrap, DrawsWholeDocuments) {
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal(0, 1);
  std::vector<double> values, repeated;
  std::vector<uint64_t> documents;
  for (uint64_t d = 0; d < 200; ++d) {
    values.push_back(normal(random));
    for (int i = 0; i < 10; ++i) {
      repeated.push_back(values.back());
      documents.push_back(1000 + 3 * d);
    }
  }
  const std::vector<double> ones(200, 1.0), tens(2000, 1.0);
  const Interval once = bootstrap_ratio(values, ones, each_its_own(200), kResamples, 7);
  const Interval ten = bootstrap_ratio(repeated, tens, documents, kResamples, 7);
  EXPECT_NEAR(ten.low, once.low, 1e-9);
  EXPECT_NEAR(ten.high, once.high, 1e-9);
  const Interval wrong = bootstrap_ratio(repeated, tens, each_its_own(2000), kResamples, 7);
  EXPECT_LT(wrong.high - wrong.low, 0.5 * (ten.high - ten.low));
}

TEST(Bootstrap, WeighsAndIsReproducible) {
  const std::vector<double> values = {1, 8, 3}, weights = {1, 4, 1};
  const Interval found = bootstrap_ratio(values, weights, each_its_own(3), 500, 1);
  EXPECT_DOUBLE_EQ(found.mean, 2);
  EXPECT_GE(found.low, 1);
  EXPECT_LE(found.high, 3);
  const Interval again = bootstrap_ratio(values, weights, each_its_own(3), 500, 1);
  EXPECT_EQ(found.low, again.low);
  const Interval constant = bootstrap_ratio(weights, weights, each_its_own(3), 500, 1);
  EXPECT_EQ(constant.low, 1);
  EXPECT_EQ(constant.high, 1);
}

// Of two documents with 0 and 1 a resample's mean is 0, 1/2 or 1. The interval of two resamples,
// a <= b, goes from a + 0.025 (b - a) to b - 0.025 (b - a): between the first and the last of them.
TEST(Bootstrap, QuantilesLieBetweenTheFirstAndTheLastResample) {
  const std::vector<double> values = {0, 1}, ones = {1, 1};
  int distinct = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Interval found = bootstrap_ratio(values, ones, each_its_own(2), 2, seed);
    const double width = (found.high - found.low) / 0.95;  // b - a
    const double a = found.low - 0.025 * width, b = found.high + 0.025 * width;
    EXPECT_NEAR(2 * a, std::round(2 * a), 1e-9) << seed;
    EXPECT_NEAR(2 * b, std::round(2 * b), 1e-9) << seed;
    distinct += width > 0 ? 1 : 0;
  }
  EXPECT_GT(distinct, 5);
}

TEST(Bootstrap, ItsWords) {
  EXPECT_EQ(verdict({-0.1, -0.2, -0.01}), "better");
  EXPECT_EQ(verdict({0.1, 0.01, 0.2}), "worse");
  EXPECT_EQ(verdict({-0.1, -0.2, 0.01}), "undecided");
  EXPECT_EQ(verdict({0, 0, 0}), "undecided");
  const std::vector<double> one = {1}, none;
  const std::vector<uint64_t> document = {0};
  EXPECT_THROW(bootstrap_ratio(none, none, {}, 10, 1), Error);
  EXPECT_THROW(bootstrap_ratio(one, none, document, 10, 1), Error);
  const std::vector<double> zero = {0};
  EXPECT_THROW(bootstrap_ratio(one, zero, document, 10, 1), Error);
}

}  // namespace
}  // namespace smalltalk
