// Arrays for kernels to write to, float32 or the bits of bfloat16.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda_emulation.hpp"

namespace smalltalk {

// An array between others that nobody may write to.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t size, T value = {}) : values_(size + 2 * kGuard, guard()) {
    std::fill_n(data(), size, value);
  }
  ~Guarded() {
    for (size_t i = 0; i < kGuard; ++i) {
      EXPECT_EQ(values_[i], guard()) << "in front";
      EXPECT_EQ(values_[values_.size() - 1 - i], guard()) << "behind";
    }
  }
  Guarded(const Guarded&) = delete;
  T* data() { return values_.data() + kGuard; }
  size_t size() const { return values_.size() - 2 * kGuard; }
  T& operator[](size_t i) { return data()[i]; }

 private:
  static constexpr size_t kGuard = 64;  // a multiple of what is loaded at once
  static T guard() { return static_cast<T>(77); }
  std::vector<T> values_;
};

inline float float_of(float value) { return value; }
inline float float_of(uint16_t bits) { return emulation::from_bf16(bits); }
template <class T>
T value_of(float value) {
  if constexpr (sizeof(T) == sizeof(float))
    return value;
  else
    return emulation::to_bf16(value);
}

}  // namespace smalltalk
