#include "lm/train/outlier_window.hpp"

#include <cmath>
#include <numeric>

namespace smalltalk {

double OutlierWindow::zscore(double value) const {
  if (values_.size() < kMinSize) return 0;
  const auto count = static_cast<double>(values_.size());
  const double mean = std::accumulate(values_.begin(), values_.end(), 0.0) / count;
  double squares = 0;
  for (double v : values_) squares += (v - mean) * (v - mean);
  const double difference = value - mean;
  return difference == 0 ? 0 : difference / std::sqrt(squares / (count - 1));
}

void OutlierWindow::add(double value) {
  if (values_.size() == kSize) values_.pop_front();
  values_.push_back(value);
}

}  // namespace smalltalk
