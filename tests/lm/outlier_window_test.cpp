#include "lm/train/outlier_window.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace smalltalk {
namespace {

TEST(OutlierWindowTest, AgreesWithTheClosedForm) {
  OutlierWindow window;
  for (int i = 1; i <= 100; ++i) window.add(i);
  // Of 1 .. n: mean (n + 1) / 2, variance of the sample n (n + 1) / 12.
  const double mean = 50.5, deviation = std::sqrt(100 * 101 / 12.0);
  for (const double value : {-20.0, 50.5, 51.0, 400.0}) {
    EXPECT_NEAR(window.zscore(value), (value - mean) / deviation, 1e-12);
  }
}

TEST(OutlierWindowTest, ForgetsTheOldest) {
  OutlierWindow window;
  for (int i = 0; i < 50; ++i) window.add(1e9);
  for (int i = 1; i <= 128; ++i) window.add(i);
  const double deviation = std::sqrt(128 * 129 / 12.0);
  EXPECT_NEAR(window.zscore(64.5 + 3 * deviation), 3, 1e-12);
  EXPECT_EQ(window.values().front(), 1);
  EXPECT_EQ(window.values().back(), 128);
}

TEST(OutlierWindowTest, SaysNothingAtTheBeginning) {
  OutlierWindow window;
  for (size_t i = 0; i + 1 < OutlierWindow::kMinSize; ++i) {
    window.add(static_cast<double>(i));
    EXPECT_EQ(window.zscore(1e9), 0);
  }
  window.add(1);
  EXPECT_GT(window.zscore(1e9), 100);
}

TEST(OutlierWindowTest, ConstantValuesAreNoOutliers) {
  OutlierWindow window;
  for (int i = 0; i < 200; ++i) window.add(2.5);
  EXPECT_EQ(window.zscore(2.5), 0);
  EXPECT_EQ(window.zscore(3), std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace smalltalk
