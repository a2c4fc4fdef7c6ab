// The table behind row_kernels.hpp, and nothing of the standard library that could leave a function
// behind. E experts.
#pragma once

#include <cstdint>

namespace smalltalk::rows {

template <typename Score>
struct RowKernelsOf {
  int64_t (*rank_rows)(const Score* rows, int64_t count, int64_t experts, bool by_margin,
                       uint32_t* ranks, uint16_t* best);
  // row_of, times and choice are [count], closed_after is [E].
  void (*choose_rows)(const Score* rows, const uint32_t* row_of, const int32_t* times,
                      int64_t count, const int32_t* closed_after, int64_t experts,
                      uint16_t* choice);
};

struct RowKernels {
  const char* instruction_set;
  RowKernelsOf<float> scores;
  RowKernelsOf<uint16_t> codes;
};

}  // namespace smalltalk::rows
