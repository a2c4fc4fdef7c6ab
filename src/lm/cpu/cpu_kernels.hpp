// What the CPU engine's time is spent on, written with vectors and compiled for several instruction
// sets. Plain row-major float32 arrays.
// T tokens, H hidden, V vocabulary.
#pragma once

#include <cstdint>

#include "smalltalk/core/system/instruction_set.hpp"

namespace smalltalk {

// c [m, n] = alpha a b, or += with `accumulate`. a is [m, k], or [k, m] if a_transposed; b is
// [k, n], or [n, k] if b_transposed. Row r of a matrix begins at data + r * stride.
struct Product {
  int64_t m, n, k;
  const float* a;
  int64_t a_stride;
  bool a_transposed;
  const float* b;
  int64_t b_stride;
  bool b_transposed;
  float* c;
  int64_t c_stride;
  float alpha;
  bool accumulate;
};

// Causal attention of one head over one sequence. q, k, v and their gradients have rows `stride`
// apart, out and d_out rows `out_stride` apart. lse [length] is in base 2, of the scores times
// log2(e). A query t sees the keys starts[t] to t; starts [length] never falls, null: all are 0.
struct HeadAttention {
  int64_t length;
  int64_t head_dim;
  const float *q, *k, *v;
  int64_t stride;
  const float* out;
  const float* d_out;
  int64_t out_stride;
  float* lse;
  float* scratch;  // head_attention_scratch() floats
  const int32_t* starts = nullptr;
};

// Softmax over the vocabulary, chunk after chunk, for tokens that lie in the lanes of vectors.
// All arrays [tokens], tokens a multiple of kSoftmaxLanes.
struct RunningSoftmax {
  float* maximum;  // of the logits so far, in base 2
  float* sum;      // of 2^(logit - maximum)
  float* factor;   // written: what sums of earlier chunks must be multiplied with
};
inline constexpr int64_t kSoftmaxLanes = 16;

struct CpuKernels {
  const char* instruction_set;

  void (*product)(const Product& product);

  // Head dimensions that head_attention_* can do; others go through products.
  bool (*fits_head)(int64_t head_dim);
  void (*head_attention_forward)(const HeadAttention& head, float* out);
  // Writes d_q, adds to d_k and d_v.
  void (*head_attention_backward)(const HeadAttention& head, float* d_q, float* d_k, float* d_v);

  // logits [rows of the vocabulary, tokens] in base 2 <- 2^(logit - maximum); takes them into the
  // running softmax. Returns whether any factor is not 1.
  bool (*softmax_chunk)(float* logits, int64_t rows, int64_t tokens, const RunningSoftmax& running);
  // The same without keeping the exponentials.
  void (*softmax_chunk_sums)(const float* logits, int64_t rows, int64_t tokens,
                             const RunningSoftmax& running);
};

inline int64_t head_attention_scratch(int64_t length, int64_t head_dim) {
  return 4 * head_dim * (length + kSoftmaxLanes) + 2 * (length + kSoftmaxLanes);
}

// Those that the program uses.
const CpuKernels& cpu_kernels();
const KernelCopies<CpuKernels>& cpu_kernel_copies();

}  // namespace smalltalk
