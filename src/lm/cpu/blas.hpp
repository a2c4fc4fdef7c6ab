// The BLAS that the program is built with: the MKL inside LibTorch (mkl.cpp), or none
// (no_blas.cpp).
#pragma once

#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk {

// Computes the product if the BLAS is faster at it than our own kernel; false: nothing was done.
bool blas_product(const Product& product);

// The BLAS would start threads of its own under each of ours: call on every compute thread.
void use_one_blas_thread();

}  // namespace smalltalk
