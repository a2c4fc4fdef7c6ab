// A matrix product for the small matrices of small models, in AVX-512. Compared with a general BLAS
// it packs nothing but transposed weights; each result is summed in one fixed order over k, so it
// does not depend on where in the matrix it stands.
#pragma once

#include <cstdint>

namespace smalltalk {

struct SmallGemm {
  int64_t m, n, k;
  const float* a;
  int64_t a_stride;
  bool a_transposed;  // a is [k, m] instead of [m, k]
  const float* b;
  int64_t b_stride;
  bool b_transposed;  // b is [n, k] instead of [k, n]
  float* c;           // [m, n]
  int64_t c_stride;
  float alpha;
  bool accumulate;  // c += instead of c =
};

bool has_avx512();
void gemm_avx512(const SmallGemm& g);  // REQUIRES has_avx512()

}  // namespace smalltalk
