#include "smalltalk/core/experiment/learning_rate.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace smalltalk {
namespace {

TEST(LearningRate, WarmsUpInEqualSteps) {
  for (const Decay decay : {Decay::constant, Decay::cosine, Decay::linear, Decay::wsd}) {
    const Schedule schedule{1.0, 0.0, 4, 100, decay};
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 0), 0.25);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 1), 0.5);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 2), 0.75);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 3), 1.0);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 4), 1.0);
  }
}

TEST(LearningRate, ConstantStays) {
  const Schedule schedule{3e-4, 1e-5, 0, 10, Decay::constant};
  for (const int64_t step : {0, 5, 9, 10, 1000}) {
    EXPECT_DOUBLE_EQ(learning_rate(schedule, step), 3e-4);
  }
}

// Values of the cosine that are known without a cosine: a third and two thirds of the way it has
// covered a quarter and three quarters of the height.
TEST(LearningRate, CosineEndsAtTheMinimum) {
  const Schedule schedule{1.0, 0.2, 10, 70, Decay::cosine};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 10), 1.0);
  EXPECT_NEAR(learning_rate(schedule, 30), 0.8, 1e-12);
  EXPECT_NEAR(learning_rate(schedule, 40), 0.6, 1e-12);
  EXPECT_NEAR(learning_rate(schedule, 50), 0.4, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 70), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1000), 0.2);
  for (int64_t step = 10; step < 70; ++step) {
    EXPECT_GT(learning_rate(schedule, step), learning_rate(schedule, step + 1));
  }
}

TEST(LearningRate, ALineIsALine) {
  const Schedule schedule{1.0, 0.2, 10, 70, Decay::linear};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 10), 1.0);
  EXPECT_NEAR(learning_rate(schedule, 25), 0.8, 1e-12);
  EXPECT_NEAR(learning_rate(schedule, 40), 0.6, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 70), 0.2);
}

// A quarter of the way has a square root of a half.
TEST(LearningRate, StaysBeforeItsLastStepsDecay) {
  for (const Decay decay : {Decay::wsd, Decay::wsd_sqrt}) {
    const Schedule schedule{1.0, 0.2, 10, 100, decay, 40};
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 4), 0.5);
    for (const int64_t step : {10, 11, 59, 60}) EXPECT_EQ(learning_rate(schedule, step), 1.0);
    EXPECT_NEAR(learning_rate(schedule, 70), decay == Decay::wsd ? 0.8 : 0.6, 1e-12);
    EXPECT_NEAR(learning_rate(schedule, 80), decay == Decay::wsd ? 0.6 : 1 - 0.8 * std::sqrt(0.5),
                1e-12);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 100), 0.2);
    // Longer, it is the same until the shorter one begins to fall.
    const Schedule longer{1.0, 0.2, 10, 1000, decay, 40};
    for (int64_t step = 0; step <= 60; ++step) {
      EXPECT_EQ(learning_rate(longer, step), learning_rate(schedule, step));
    }
  }
}

TEST(LearningRate, WarmUpMayFillTheRun) {
  const Schedule schedule{1.0, 0.0, 5, 5, Decay::cosine};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 4), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 5), 0.0);
}

}  // namespace
}  // namespace smalltalk
