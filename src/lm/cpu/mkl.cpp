#include <cpuid.h>

#include <algorithm>
#include <string_view>

#include "lm/cpu/blas.hpp"

extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda,
                       const float* b, const int* ldb, const float* beta, float* c, const int* ldc);
extern "C" int MKL_Set_Num_Threads_Local(int threads);

namespace smalltalk {
namespace {

// MKL computes with half of AVX-512's width on AMD's processors. That is all that Zen 4 has, but
// from Zen 5 (family 26) on it is half of the speed.
bool mkl_leaves_half() {
  unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (std::string_view(cpu_kernels().instruction_set) != "avx512") return false;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0 || ebx != signature_AMD_ebx) return false;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  return (eax >> 8 & 0xF) + (eax >> 20 & 0xFF) >= 26;
}

// Whether our own kernel is the faster one. Measured on Zen 4, of 115 GFLOP/s possible: 105 to 112
// against 60 to 100 of MKL at a router's sizes; at an expert's, MKL is ahead where the result is
// wide. On Zen 5, of 258 possible: 180 to 250 against 95 to 115 of MKL at all sizes.
bool is_ours(const Product& g) {
  static const bool all = mkl_leaves_half();
  if (all) return true;
  if (g.a_transposed) return g.n <= 128;
  if (g.b_transposed) return g.m * std::min<int64_t>(g.k, 256) <= 128 * 1024;
  return g.n <= 512;
}

}  // namespace

// BLAS is column-major: a row-major matrix is its transpose there, so the product is computed as
// c^T = b^T a^T, with the operands swapped.
bool blas_product(const Product& g) {
  if (is_ours(g)) return false;
  if (g.m == 0 || g.n == 0) return true;
  const char trans_a = g.a_transposed ? 'T' : 'N', trans_b = g.b_transposed ? 'T' : 'N';
  const int rows = static_cast<int>(g.n), columns = static_cast<int>(g.m);
  const int inner = static_cast<int>(g.k), lda = static_cast<int>(g.b_stride);
  const int ldb = static_cast<int>(g.a_stride), ldc = static_cast<int>(g.c_stride);
  const float beta = g.accumulate ? 1.0F : 0.0F;
  sgemm_(&trans_b, &trans_a, &rows, &columns, &inner, &g.alpha, g.b, &lda, g.a, &ldb, &beta, g.c,
         &ldc);
  return true;
}

void use_one_blas_thread() { MKL_Set_Num_Threads_Local(1); }

}  // namespace smalltalk
