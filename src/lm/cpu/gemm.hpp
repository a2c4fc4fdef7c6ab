// Matrix products on row-major float32, each on one thread: our own kernel for small matrices, else
// the BLAS inside LibTorch (MKL), called directly: at the sizes of a router, wrapping pointers in
// tensors costs as much as the product.
#pragma once

#include <cstdint>

namespace smalltalk {

// A matrix inside a larger row-major one: row r begins at data + r * stride.
struct Matrix {
  const float* data;
  int64_t stride;
};
struct MutableMatrix {
  float* data;
  int64_t stride;
};

// c [m, n] = alpha a [m, k] b [n, k]^T, or += if `accumulate`: a linear layer with weight b.
void gemm_nt(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, bool accumulate,
             MutableMatrix c);
// c [m, n] = alpha a [m, k] b [k, n], or +=: the gradient of its input.
void gemm_nn(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, bool accumulate,
             MutableMatrix c);
// c [m, n] = alpha a [k, m]^T b [k, n], or +=: the gradient of its weight.
void gemm_tn(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, bool accumulate,
             MutableMatrix c);

}  // namespace smalltalk
