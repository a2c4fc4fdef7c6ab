// Sums too large for 64 bits, in the two integers that go through an all-reduce. Private to core.
#pragma once

#include <array>
#include <cstdint>

namespace smalltalk {

__extension__ using WideSum = __int128;

// Halves that may be summed over ranks one by one.
inline std::array<int64_t, 2> halves_of(WideSum sum) {
  return {static_cast<int64_t>(sum >> 32), static_cast<int64_t>(sum & 0xFFFFFFFF)};
}
inline WideSum join_halves(int64_t high, int64_t low) {
  return WideSum{high} * (int64_t{1} << 32) + low;
}

}  // namespace smalltalk
