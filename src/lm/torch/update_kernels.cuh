// The kernels of update_launch.hpp. To be included as block_kernels.cuh is.
#pragma once

#include "lm/torch/block_kernels.cuh"
#include "lm/torch/update_launch.hpp"

namespace smalltalk {
namespace update {

using block::kPack;
using block::load_pack;
using block::store_pack;

constexpr int64_t kMaxBlocks = 4096;  // their threads take the rest in turns

// Each thread gets the sum over the block, in the same order whoever comes first.
__device__ inline double block_sum(double value) {
  __shared__ double values[kBlockThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = kBlockThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    __syncthreads();
  }
  return values[0];
}

__global__ void __launch_bounds__(kBlockThreads, 2)
    square_sums_kernel(const float* values, int64_t size, bool aligned, int64_t stride,
                       double* parts) {
  double sum = 0;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x) * kPack;
       at < size; at += stride) {
    float pack[kPack];
    load_pack(values, at, size, aligned, pack);
    float squares = 0;
    for (int i = 0; i < kPack; ++i) squares += pack[i] * pack[i];
    sum += static_cast<double>(squares);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kBlockThreads, 2)
    collect_kernel(RankNumbers mine, const double* parts, int64_t num_parts, double* loss,
                   double* numbers) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < num_parts; i += kBlockThreads) sum += parts[i];
  sum = block_sum(sum);
  for (int64_t i = threadIdx.x; i < mine.ranks; i += kBlockThreads) {
    if (i != mine.rank) numbers[StepSlots::kLosses + i] = 0;
  }
  if (threadIdx.x != 0) return;
  numbers[StepSlots::kLosses + mine.rank] = *loss * mine.loss_scale;
  *loss = 0;
  numbers[StepSlots::kSquareSum] = sum;
  numbers[StepSlots::kStop] = mine.stop;
  numbers[StepSlots::kWritten] = mine.written;
  numbers[StepSlots::kCounted] = mine.counted;
}

__global__ void __launch_bounds__(kBlockThreads, 2)
    decide_kernel(UpdateRule rule, double lr, int64_t ranks, const double* numbers,
                  UpdateState* state) {
  if (threadIdx.x != 0) return;
  const double mean = numbers[StepSlots::kCounted] / static_cast<double>(ranks);
  const double counted = mean > 0 ? mean : 1.0;  // nothing counts, and all is zero
  const double norm = sqrt(numbers[StepSlots::kSquareSum]) / counted;
  bool finite = std::isfinite(norm);
  for (int64_t i = 0; i < ranks; ++i) {
    finite = finite && std::isfinite(numbers[StepSlots::kLosses + i]);
  }
  state->accepted = finite ? 1 : 0;
  if (!finite) return;
  state->step = adam_step(rule, lr, state->updates, norm, counted);
  ++state->updates;
}

__global__ void __launch_bounds__(kBlockThreads, 2)
    adamw_kernel(const UpdateState* state, UpdateBuffers to, bool aligned, int64_t stride) {
  const bool accepted = state->accepted != 0;
  const AdamStep s = state->step;
  const float rate = s.lr / s.correction1, kept = 1.0F - s.lr * s.weight_decay;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x) * kPack;
       at < to.size; at += stride) {
    const float zeros[kPack] = {};
    if (!accepted) {
      store_pack(to.gradients, at, to.size, aligned, zeros);
      continue;
    }
    float p[kPack], g[kPack], m[kPack], v[kPack];
    load_pack(to.parameters, at, to.size, aligned, p);
    load_pack(to.gradients, at, to.size, aligned, g);
    load_pack(to.first, at, to.size, aligned, m);
    load_pack(to.second, at, to.size, aligned, v);
    for (int i = 0; i < kPack; ++i) {
      const float gradient = g[i] * s.gradient_scale;
      m[i] = s.beta1 * m[i] + (1.0F - s.beta1) * gradient;
      v[i] = s.beta2 * v[i] + (1.0F - s.beta2) * gradient * gradient;
      const float denominator = sqrtf(v[i]) / s.correction2_root + s.eps;
      p[i] = p[i] * (at + i < to.decaying ? kept : 1.0F) - rate * m[i] / denominator;
    }
    store_pack(to.parameters, at, to.size, aligned, p);
    store_pack(to.first, at, to.size, aligned, m);
    store_pack(to.second, at, to.size, aligned, v);
    store_pack(to.gradients, at, to.size, aligned, zeros);
    if (to.copy != nullptr) store_pack(to.copy, at, to.size, aligned, p);
  }
}

// ---- Launching ----------------------------------------------------------------------------------

inline int64_t blocks_of(int64_t size, int64_t most) {
  const int64_t needed = block::blocks_for((size + kPack - 1) / kPack);
  return needed < most ? needed : most;
}

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

inline void launch_square_sums(const float* values, int64_t size, double* parts,
                               CUstream_st* stream) {
  const int64_t blocks = blocks_of(size, kSquareParts);
  launch(LaunchGrid{blocks}, stream, square_sums_kernel, values, size, is_aligned(values, 16),
         blocks * kBlockThreads * kPack, parts);
}

inline void launch_collect(const RankNumbers& mine, const double* parts, int64_t num_parts,
                           double* loss, double* numbers, CUstream_st* stream) {
  launch(LaunchGrid{1}, stream, collect_kernel, mine, parts, num_parts, loss, numbers);
}

inline void launch_decide(const UpdateRule& rule, double lr, int64_t ranks, const double* numbers,
                          UpdateState* state, CUstream_st* stream) {
  launch(LaunchGrid{1}, stream, decide_kernel, rule, lr, ranks, numbers, state);
}

inline void launch_adamw(const UpdateState* state, const UpdateBuffers& to, CUstream_st* stream) {
  const int64_t blocks = blocks_of(to.size, kMaxBlocks);
  const bool aligned = is_aligned(to.parameters, 16) && is_aligned(to.gradients, 16) &&
                       is_aligned(to.first, 16) && is_aligned(to.second, 16) &&
                       is_aligned(to.copy, 8);
  launch(LaunchGrid{blocks}, stream, adamw_kernel, state, to, aligned,
         blocks * kBlockThreads * kPack);
}

}  // namespace update

inline const UpdateKernels kUpdateKernels = {update::launch_square_sums, update::launch_collect,
                                             update::launch_decide, update::launch_adamw};

}  // namespace smalltalk
