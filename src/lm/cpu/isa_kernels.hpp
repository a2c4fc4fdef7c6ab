// The functions behind CpuKernels, of one instruction set.
#pragma once

#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk::ST_ISA {

void product(const Product& product);
bool fits_head(int64_t head_dim);
void head_attention_forward(const HeadAttention& head, float* out);
void head_attention_backward(const HeadAttention& head, float* d_q, float* d_k, float* d_v);
bool softmax_chunk(float* logits, int64_t rows, int64_t tokens, const RunningSoftmax& running);
void softmax_chunk_sums(const float* logits, int64_t rows, int64_t tokens,
                        const RunningSoftmax& running);

}  // namespace smalltalk::ST_ISA
