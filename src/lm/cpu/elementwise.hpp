// Elementwise work of the CPU engine on plain arrays, row-major, compiled for several instruction
// sets.
// T tokens, H hidden, F intermediate, V vocabulary.
#pragma once

#include <cstdint>

#include "smalltalk/core/system/instruction_set.hpp"

namespace smalltalk {

struct AdamStep {
  float lr, beta1, beta2, eps, weight_decay;
  float gradient_scale;    // of clipping
  float correction1;       // 1 - beta1^t
  float correction2_root;  // sqrt(1 - beta2^t)
};

struct ElementwiseKernels {
  const char* instruction_set;

  // out [T, H] = x * rsqrt(mean(x^2) + eps) * weight; rstd [T] keeps the reciprocal root.
  void (*rms_norm_forward)(const float* x, const float* weight, float eps, int64_t tokens,
                           int64_t hidden, float* out, float* rstd);
  // d_x += gradient, d_weight += gradient; d_out is that of `out`.
  void (*rms_norm_backward)(const float* x, const float* weight, const float* rstd,
                            const float* d_out, int64_t tokens, int64_t hidden, float* d_x,
                            float* d_weight);

  // Rotates the first `heads` heads of each row of x [T, stride] in place; token t is at position
  // t % length. cosine and sine are [length, head_dim / 2]. direction -1 undoes it (and is the
  // gradient).
  void (*rotate_heads)(float* x, int64_t stride, int64_t tokens, int64_t length, int64_t heads,
                       int64_t head_dim, const float* cosine, const float* sine, float direction);

  // out [T, F] = silu(gate) * up of gate_up [T, 2 F]. Backward writes d_gate_up.
  void (*swiglu_forward)(const float* gate_up, int64_t tokens, int64_t width, float* out);
  void (*swiglu_backward)(const float* gate_up, const float* d_out, int64_t tokens, int64_t width,
                          float* d_gate_up);
  // out = relu(up)^2 of up [size].
  void (*relu2_forward)(const float* up, int64_t size, float* out);
  void (*relu2_backward)(const float* up, const float* d_out, int64_t size, float* d_up);

  // row <- exp(row - max(row)); returns the sum, and the maximum in *maximum.
  float (*exp_row)(float* row, int64_t size, float* maximum);
  // row <- exp(row - shift).
  void (*exp_shifted)(float* row, int64_t size, float shift);
  // probability <- probability * (d_probability - dot) * scale.
  void (*softmax_backward_row)(float* probability, const float* d_probability, int64_t size,
                               float dot, float scale);
  float (*dot_product)(const float* a, const float* b, int64_t size);
  void (*scale_row)(float* row, int64_t size, float factor);
  void (*scale_row_into)(const float* row, int64_t size, float factor, float* out);
  void (*multiply_into)(const float* factors, int64_t size, float* values);
  void (*add_scaled)(const float* values, int64_t size, float factor, float* sum);
  void (*add_into)(const float* values, int64_t size, float* sum);
  void (*move_into)(float* values, int64_t size, float* sum);  // leaves zeros

  double (*sum_of_squares)(const float* values, int64_t size);

  // One step of AdamW (Loshchilov and Hutter, algorithm 2) on a range of the flat buffers, with
  // clipping; leaves the gradients zero.
  void (*adamw)(float* parameters, float* gradients, float* first, float* second, int64_t size,
                const AdamStep& step);
};

// Those that the program uses.
const ElementwiseKernels& elementwise();
const KernelCopies<ElementwiseKernels>& elementwise_copies();

}  // namespace smalltalk
