// How far a value lies from the values of the last steps.
#pragma once

#include <cstddef>
#include <deque>

namespace smalltalk {

class OutlierWindow {
 public:
  static constexpr size_t kSize = 128;
  static constexpr size_t kMinSize = 64;  // fewer values say too little

  // Distance of `value` above the mean of the window in standard deviations (of the sample, n - 1);
  // negative if below. 0 while the window holds fewer than kMinSize values. A function of the
  // values in their order alone, so that a resumed run decides as the unbroken one.
  double zscore(double value) const;
  void add(double value);  // the oldest leaves a full window
  const std::deque<double>& values() const { return values_; }

 private:
  std::deque<double> values_;  // the oldest first
};

}  // namespace smalltalk
