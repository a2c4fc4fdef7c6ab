#include "gemm.hpp"

extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda,
                       const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace smalltalk {
namespace {

// BLAS is column-major: a row-major matrix is its transpose there, so the product is computed as
// c^T = b^T a^T, with the operands swapped.
void sgemm(char trans_b, char trans_a, int64_t m, int64_t n, int64_t k, float alpha, Matrix a,
           Matrix b, float beta, MutableMatrix c) {
  if (m == 0 || n == 0) return;
  const int rows = static_cast<int>(n), columns = static_cast<int>(m), inner = static_cast<int>(k);
  const int lda = static_cast<int>(b.stride), ldb = static_cast<int>(a.stride);
  const int ldc = static_cast<int>(c.stride);
  sgemm_(&trans_b, &trans_a, &rows, &columns, &inner, &alpha, b.data, &lda, a.data, &ldb, &beta,
         c.data, &ldc);
}

}  // namespace

void gemm_nt(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, float beta,
             MutableMatrix c) {
  sgemm('T', 'N', m, n, k, alpha, a, b, beta, c);
}

void gemm_nn(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, float beta,
             MutableMatrix c) {
  sgemm('N', 'N', m, n, k, alpha, a, b, beta, c);
}

void gemm_tn(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, float beta,
             MutableMatrix c) {
  sgemm('N', 'T', m, n, k, alpha, a, b, beta, c);
}

}  // namespace smalltalk
