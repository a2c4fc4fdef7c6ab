// What isa_simd.hpp adds to isa_vector.hpp, for AVX-512.
#pragma once

#include <immintrin.h>

#include "lm/cpu/isa_vector.hpp"

namespace smalltalk::ST_ISA {

inline constexpr int kTileRows = 12;  // 12 x 2 of 32 registers

ST_INLINE Vec exp2_of(Vec x) {
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (Vec)_mm512_scalef_ps((__m512)exp2_of_rest(x - n), (__m512)n);
}

ST_INLINE void transpose_square(const float* from, int64_t stride, float* to, int64_t to_stride) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + i * stride);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1] = _mm512_shuffle_ps(t[i + j], t[i + j + 2], 0xEE);
    }
  }
  // r[4 g + j] holds, in 128-bit lane l, column 4 l + j of rows 4 g .. 4 g + 3.
  for (int j = 0; j < 4; ++j) {
    const __m512 low01 = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);   // lanes 0, 2
    const __m512 high01 = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xDD);  // lanes 1, 3
    const __m512 low23 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    const __m512 high23 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xDD);
    _mm512_storeu_ps(to + j * to_stride, _mm512_shuffle_f32x4(low01, low23, 0x88));
    _mm512_storeu_ps(to + (4 + j) * to_stride, _mm512_shuffle_f32x4(high01, high23, 0x88));
    _mm512_storeu_ps(to + (8 + j) * to_stride, _mm512_shuffle_f32x4(low01, low23, 0xDD));
    _mm512_storeu_ps(to + (12 + j) * to_stride, _mm512_shuffle_f32x4(high01, high23, 0xDD));
  }
}

}  // namespace smalltalk::ST_ISA
