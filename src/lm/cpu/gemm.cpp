#include "lm/cpu/gemm.hpp"

#include "lm/cpu/blas.hpp"
#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk {
namespace {

void multiply(const Product& g) {
  if (!blas_product(g)) cpu_kernels().product(g);
}

}  // namespace

void gemm_nt(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, bool accumulate,
             MutableMatrix c) {
  multiply({m, n, k, a.data, a.stride, false, b.data, b.stride, true, c.data, c.stride, alpha,
            accumulate});
}

void gemm_nn(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, bool accumulate,
             MutableMatrix c) {
  multiply({m, n, k, a.data, a.stride, false, b.data, b.stride, false, c.data, c.stride, alpha,
            accumulate});
}

void gemm_tn(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, bool accumulate,
             MutableMatrix c) {
  multiply({m, n, k, a.data, a.stride, true, b.data, b.stride, false, c.data, c.stride, alpha,
            accumulate});
}

}  // namespace smalltalk
