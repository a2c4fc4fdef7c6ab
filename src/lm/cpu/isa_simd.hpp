// Vectors of the instruction set that an isa_ file is compiled for. Each of them is
// compiled once for each instruction set (CMakeLists.txt), with ST_ISA as the name of the namespace
// that keeps the copies apart; cpu_kernels.cpp picks one at run time. No header of the standard
// library that is included here may leave a function behind that another copy would share.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace smalltalk::ST_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
inline constexpr int kTileRows = 12;  // of results kept in registers by a product: 12 x 2 of 32
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
inline constexpr int kTileRows = 6;  // 6 x 2 of 16 registers
#else
inline constexpr int kLanes = 4;
inline constexpr int kTileRows = 6;
#endif

using Vec = float __attribute__((vector_size(kLanes * 4)));
using IntVec = int32_t __attribute__((vector_size(kLanes * 4)));

#define ST_INLINE inline __attribute__((always_inline))

// At any address.
ST_INLINE Vec load(const float* from) {
  using Unaligned = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
  return *reinterpret_cast<const Unaligned*>(from);
}
ST_INLINE void store(float* to, Vec value) {
  using Unaligned = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
  *reinterpret_cast<Unaligned*>(to) = value;
}
ST_INLINE Vec broadcast(float value) { return Vec{} + value; }
ST_INLINE Vec max_of(Vec a, Vec b) { return a > b ? a : b; }
ST_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
ST_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
ST_INLINE int64_t round_up(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

// The polynomial with the smallest relative error (9e-8) on [-1/2, 1/2] that is 1 at 0.
inline constexpr float kExp2[6] = {1.0F,          0.693146978F,   0.24022242F,
                                   0.0555073377F, 0.00967151753F, 0.00132647352F};

// 2^x by rounding to the nearest whole number n and a polynomial for 2^(x - n), error below 2 ulp.
// For x below -126 the result is 0 with AVX-512, else about 1e-38.
ST_INLINE Vec exp2_of(Vec x) {
#if defined(__AVX512F__)
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec r = x - n;
#else
  x = max_of(x, broadcast(-126.0F));
#if defined(__AVX2__)
  const IntVec n = (IntVec)_mm256_cvtps_epi32((__m256)x);
#else
  const IntVec n = (IntVec)_mm_cvtps_epi32((__m128)x);
#endif
  const Vec r = x - __builtin_convertvector(n, Vec);
#endif
  Vec p = broadcast(kExp2[5]);
  for (int i = 4; i >= 0; --i) p = p * r + kExp2[i];
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return (Vec)((IntVec)p + (n << 23));
#endif
}

}  // namespace smalltalk::ST_ISA
