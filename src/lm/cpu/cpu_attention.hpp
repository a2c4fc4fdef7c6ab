// Causal attention of a few sequences on the CPU, forward and backward, head by head: narrow
// heads through a kernel of their own (cpu_kernels.hpp), others through small matrix products. The
// probabilities of a head exist only for kQueryBlock queries at a time; the backward pass computes
// them again from the row's log of the sum of exponentials.
#pragma once

#include <cstdint>

#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk {

struct AttentionShape {
  int64_t rows;    // sequences
  int64_t length;  // tokens of each
  int64_t heads;
  int64_t kv_heads;  // divides heads; head h reads key-value head h / (heads / kv_heads)
  int64_t head_dim;
  // [rows * length]: token t of a sequence sees its tokens starts[t] to t; null: all are 0. Never
  // falls within a sequence.
  const int32_t* starts = nullptr;
  int64_t qkv_stride() const { return (heads + 2 * kv_heads) * head_dim; }
  int64_t out_stride() const { return heads * head_dim; }
};

inline constexpr int64_t kQueryBlock = 32;
// Floats of scratch that both functions need.
int64_t attention_scratch_size(int64_t length, int64_t head_dim);

// qkv [rows * length, (heads + 2 kv) d] -> out [rows * length, heads d], and what the backward pass
// needs of the softmax, lse [rows, heads, length].
void attention_forward(const CpuKernels& kernels, const AttentionShape& shape, const float* qkv,
                       float* out, float* lse, float* scratch);
// Writes d_qkv.
void attention_backward(const CpuKernels& kernels, const AttentionShape& shape, const float* qkv,
                        const float* out, const float* lse, const float* d_out, float* d_qkv,
                        float* scratch);

}  // namespace smalltalk
