// The CUDA kernels of the fused projection and cross-entropy behind plain pointers, so that nvcc
// compiles no LibTorch header. bfloat16 matrices as their bits, 16-byte aligned if H is a multiple
// of 8: hidden [T, H], head [V, H]; targets [T]. T tokens, H hidden, V vocabulary.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace smalltalk {

struct LossSizes {
  int64_t tokens = 0, hidden = 0, vocab = 0;
};

// Floats of scratch that launch_log_probs needs.
int64_t log_probs_scratch(const LossSizes& shape);

// log_sums [T]: log of the sum of exp(logit); log_probs [T]: log p(target); greedy [T]: 1 where no
// word is likelier than the target, else 0.
void launch_log_probs(const LossSizes& shape, const uint16_t* hidden, const uint16_t* head,
                      const int64_t* targets, float* scratch, float* log_sums, float* log_probs,
                      uint8_t* greedy, CUstream_st* stream);

// d_logits [T, width] = scale * (softmax - onehot) of the words [begin, begin + width).
void launch_d_logits(const LossSizes& shape, const uint16_t* hidden, const uint16_t* head,
                     const int64_t* targets, const float* log_sums, float scale, int64_t begin,
                     int64_t width, uint16_t* d_logits, CUstream_st* stream);

}  // namespace smalltalk
