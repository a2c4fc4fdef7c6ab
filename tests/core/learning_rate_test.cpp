#include "smalltalk/core/experiment/learning_rate.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "smalltalk/core/system/error.hpp"

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

// What a longer one may go on from: all of a constant one, what lies before a late decay, and of
// the others the warm-up.
TEST(LearningRate, SaysHowLongTwoSchedulesAreAlike) {
  const auto alike_until = [](const Schedule& a, const Schedule& b) {
    int64_t steps = 0;
    while (steps < 200 && begin_alike(a, b, steps + 1)) ++steps;
    return steps;
  };
  const auto longer = [](Schedule schedule) {
    schedule.steps = 150;
    return schedule;
  };
  const Schedule constant{1.0, 0.2, 10, 100, Decay::constant};
  EXPECT_EQ(alike_until(constant, longer(constant)), 100);
  EXPECT_EQ(constant.end_of_stable_phase(), 100);
  for (const Decay decay : {Decay::wsd, Decay::wsd_sqrt}) {
    const Schedule wsd{1.0, 0.2, 10, 100, decay, 40};
    EXPECT_EQ(alike_until(wsd, longer(wsd)), 61);  // the rate of its first step is still the peak
    EXPECT_EQ(alike_until(longer(wsd), wsd), 61);
    EXPECT_EQ(alike_until(wsd, constant), 61);  // a constant one may be cooled down later
    EXPECT_EQ(wsd.end_of_stable_phase(), 60);
  }
  for (const Decay decay : {Decay::cosine, Decay::linear}) {
    const Schedule falling{1.0, 0.2, 10, 100, decay};
    EXPECT_EQ(alike_until(falling, longer(falling)), 11);
    EXPECT_EQ(falling.end_of_stable_phase(), 0);
  }
  Schedule warmer = constant;
  warmer.warmup_steps = 9;
  EXPECT_EQ(alike_until(constant, warmer), 0);
  Schedule lower = constant;
  lower.min_lr = 0.1;  // which a constant one never reaches
  EXPECT_EQ(alike_until(constant, lower), 200);
}

TEST(LearningRate, AScheduleIsALineAndBack) {
  for (const Decay decay : kDecays) {
    const Schedule schedule{0.1 + 0.2, 1.0 / 3, 7, int64_t{1} << 40, decay, 12};
    const Schedule back = parse_schedule(to_string(schedule));
    EXPECT_EQ(back.lr, schedule.lr);
    EXPECT_EQ(back.min_lr, schedule.min_lr);
    EXPECT_EQ(back.warmup_steps, 7);
    EXPECT_EQ(back.steps, schedule.steps);
    EXPECT_EQ(back.decay, decay);
    EXPECT_EQ(back.decay_steps, 12);
  }
  for (const char* line : {"", "cosine", "cosine 1 2 3 4", "sine 1 2 3 4 5", "cosine 1 x 3 4 5"}) {
    EXPECT_THROW(parse_schedule(line), Error) << line;
  }
}

TEST(LearningRate, WarmUpMayFillTheRun) {
  const Schedule schedule{1.0, 0.0, 5, 5, Decay::cosine};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 4), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 5), 0.0);
}

}  // namespace
}  // namespace smalltalk
