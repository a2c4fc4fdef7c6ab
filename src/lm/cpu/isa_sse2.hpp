// What isa_simd.hpp adds to isa_vector.hpp, for SSE2.
#pragma once

#include <emmintrin.h>

#include "lm/cpu/isa_vector.hpp"

namespace smalltalk::ST_ISA {

inline constexpr int kTileRows = 6;  // 6 x 2 of 16 registers

ST_INLINE Vec exp2_of(Vec x) {
  x = max_of(x, broadcast(kLeastExponent));
  return exp2_by_exponent(x, (IntVec)_mm_cvtps_epi32((__m128)x));
}

ST_INLINE void transpose_square(const float* from, int64_t stride, float* to, int64_t to_stride) {
  transpose_by_element(from, stride, to, to_stride);
}

}  // namespace smalltalk::ST_ISA
