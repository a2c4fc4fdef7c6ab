// What a block does between its matrix products, on tensors, forward and backward written out: by
// kernels (block_launch.hpp) on a GPU, by LibTorch's operations elsewhere. T tokens of each of R
// models, H hidden, F intermediate. "The type" is that of the products, float32 or bfloat16.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "lm/torch/block_launch.hpp"
#include "lm/torch/torch_ops.hpp"
#include "lm/torch/update_launch.hpp"
#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// Those for tensors on this device; null: LibTorch's operations take their place.
const BlockKernels* block_kernels(const at::Device& device);
// What stands for the GPU's kernels on the CPU, for tests; null: nothing.
void set_cpu_block_kernels(const BlockKernels* kernels);
// The same for those of the optimiser; null: the CPU's own code.
const UpdateKernels* update_kernels(const at::Device& device);
void set_cpu_update_kernels(const UpdateKernels* kernels);

// The stream to launch them on; after each launch check_launch() throws what CUDA says.
CUstream_st* stream_of(const at::Tensor& tensor);
void check_launch(const at::Tensor& tensor);

// A copy of `values` on a device [n], int64.
at::Tensor copied_to(const at::Device& device, std::span<const int64_t> values);

struct Normed {
  at::Tensor sum;   // [R, T, H] float32, what was normalised
  at::Tensor out;   // [R, T, H], of the type
  at::Tensor rstd;  // [R, T, 1] float32
};
// Of x [R, T, H] float32 plus `delta` [R, T, H] of the type, if defined. weight [R, 1, H] float32,
// its models any distance apart.
Normed add_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight,
                double epsilon, at::ScalarType type);
// Given the gradient of `out`, adds to that of the sum, d_x [R, T, H] float32, and to d_weight, as
// weight. -> d_x in the type; it may be d_x itself.
at::Tensor norm_backward(const at::Tensor& d_out, const Normed& normed, const at::Tensor& weight,
                         at::Tensor& d_x, at::Tensor& d_weight);
// The output alone, computed again: the same bits.
at::Tensor norm_again(const Normed& normed, const at::Tensor& weight, double epsilon,
                      at::ScalarType type);

// Queries, keys and values of qkv [R, T, (heads + 2 kv heads) dim], the type; each
// [sequences, heads, length, dim].
struct Heads {
  at::Tensor query, key, value;
};
// Turns queries and keys in place; -> views of qkv. The rows of `angles` are the positions.
Heads split_heads(const ModelConfig& config, at::Tensor& qkv, const RotaryAngles& angles);
// -> the gradient of qkv, [R, T, ...], given those of its heads.
at::Tensor split_heads_backward(const ModelConfig& config, const Heads& gradients,
                                const RotaryAngles& angles, int64_t num_models);

// up [R, T, gate_up_width] -> [R, T, F]
at::Tensor activation(const ModelConfig& config, const at::Tensor& up);
at::Tensor activation_backward(const ModelConfig& config, const at::Tensor& up,
                               const at::Tensor& d_out);

// Of logits [T, V] float32. `counted` [T] bool may be undefined. With `d_logits` [T, V], of the
// type, also scale * (softmax - onehot).
void softmax_scores(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& counted,
                    float scale, at::Tensor log_probs, at::Tensor greedy, at::Tensor* d_logits);

}  // namespace smalltalk
