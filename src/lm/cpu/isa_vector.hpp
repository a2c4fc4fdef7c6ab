// Vectors of the instruction set that an isa_ file is compiled for, by the compiler's vector
// extensions alone.
#pragma once

#include <cstdint>

namespace smalltalk::ST_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
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

// 2^x for x in [-1/2, 1/2], by the polynomial with the smallest relative error (9e-8) that is 1 at
// 0.
ST_INLINE Vec exp2_of_rest(Vec x) {
  constexpr float kFactors[6] = {1.0F,          0.693146978F,   0.24022242F,
                                 0.0555073377F, 0.00967151753F, 0.00132647352F};
  Vec p = broadcast(kFactors[5]);
  for (int i = 4; i >= 0; --i) p = p * x + kFactors[i];
  return p;
}

// 2^x, of which n is the nearest whole number: n is added to the exponent of 2^(x - n).
ST_INLINE Vec exp2_by_exponent(Vec x, IntVec n) {
  const Vec p = exp2_of_rest(x - __builtin_convertvector(n, Vec));
  return (Vec)((IntVec)p + (n << 23));
}
inline constexpr float kLeastExponent = -126.0F;

ST_INLINE void transpose_by_element(const float* from, int64_t stride, float* to,
                                    int64_t to_stride) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) to[j * to_stride + i] = from[i * stride + j];
  }
}

}  // namespace smalltalk::ST_ISA
