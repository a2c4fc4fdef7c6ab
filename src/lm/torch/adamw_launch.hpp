// The CUDA kernel of AdamW behind plain pointers, so that nvcc compiles no LibTorch header.
#pragma once

#include "lm/cpu/elementwise.hpp"

struct CUstream_st;

namespace smalltalk {

void launch_adamw(float* parameters, const float* gradients, float* first, float* second,
                  int64_t size, const AdamStep& step, CUstream_st* stream);

}  // namespace smalltalk
