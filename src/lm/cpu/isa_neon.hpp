// What isa_simd.hpp adds to isa_vector.hpp, for NEON.
#pragma once

#include <arm_neon.h>

#include "lm/cpu/isa_vector.hpp"

namespace smalltalk::ST_ISA {

inline constexpr int kTileRows = 12;  // 12 x 2 of 32 registers

ST_INLINE Vec exp2_of(Vec x) {
  x = max_of(x, broadcast(kLeastExponent));
  return exp2_by_exponent(x, (IntVec)vcvtnq_s32_f32((float32x4_t)x));
}

ST_INLINE void transpose_square(const float* from, int64_t stride, float* to, int64_t to_stride) {
  transpose_by_element(from, stride, to, to_stride);
}

}  // namespace smalltalk::ST_ISA
