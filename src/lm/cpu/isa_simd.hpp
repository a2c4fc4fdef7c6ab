// All that kernels know about the instruction set that they are compiled for: isa_vector.hpp, and
// from a header of each set:
//   kTileRows                             rows of results that a product keeps in registers
//   exp2_of(x)                            2^x, error below 2 ulp; below -126 it is 0 with AVX-512,
//                                         else about 1e-38
//   transpose_square(from, stride, to, to_stride)   to <- the transpose of kLanes rows of kLanes
#pragma once

#if defined(__AVX512F__)
#include "lm/cpu/isa_avx512.hpp"
#elif defined(__AVX2__)
#include "lm/cpu/isa_avx2.hpp"
#elif defined(__SSE2__)
#include "lm/cpu/isa_sse2.hpp"
#else
#include "lm/cpu/isa_neon.hpp"
#endif
