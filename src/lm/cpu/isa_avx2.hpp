// What isa_simd.hpp adds to isa_vector.hpp, for AVX2.
#pragma once

#include <immintrin.h>

#include "lm/cpu/isa_vector.hpp"

namespace smalltalk::ST_ISA {

inline constexpr int kTileRows = 6;  // 6 x 2 of 16 registers

ST_INLINE Vec exp2_of(Vec x) {
  x = max_of(x, broadcast(kLeastExponent));
  return exp2_by_exponent(x, (IntVec)_mm256_cvtps_epi32((__m256)x));
}

ST_INLINE void transpose_square(const float* from, int64_t stride, float* to, int64_t to_stride) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * stride);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xEE);
    }
  }
  // r[4 g + j] holds, in 128-bit lane l, column 4 l + j of rows 4 g .. 4 g + 3.
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(to + j * to_stride, _mm256_permute2f128_ps(r[j], r[4 + j], 0x20));
    _mm256_storeu_ps(to + (4 + j) * to_stride, _mm256_permute2f128_ps(r[j], r[4 + j], 0x31));
  }
}

}  // namespace smalltalk::ST_ISA
