// A step of AdamW on a GPU: the norm of the gradients, whether and how they are applied, the update
// itself with the copy of the weights that products read. Kernels behind plain pointers, so that
// nvcc compiles no LibTorch header; none of them waits for the host or uses atomics.
#pragma once

#include <cmath>
#include <cstdint>

#include "lm/cpu/elementwise.hpp"

struct CUstream_st;

namespace smalltalk {

// What all steps of a training share.
struct UpdateRule {
  double beta1, beta2, eps, weight_decay;
  double grad_clip;  // largest norm of gradients; 0: any
};

// The step that update t (from 0) makes. Gradients are divided by `counted`, which has been done
// to `gradient_norm`. constexpr, so that nvcc compiles it for the device, too.
constexpr AdamStep adam_step(const UpdateRule& rule, double lr, int64_t t, double gradient_norm,
                             double counted) {
  const auto time = static_cast<double>(t + 1);
  double scale = 1 / counted;
  if (rule.grad_clip > 0 && gradient_norm > rule.grad_clip) scale *= rule.grad_clip / gradient_norm;
  AdamStep step{};
  step.lr = static_cast<float>(lr);
  step.beta1 = static_cast<float>(rule.beta1);
  step.beta2 = static_cast<float>(rule.beta2);
  step.eps = static_cast<float>(rule.eps);
  step.weight_decay = static_cast<float>(rule.weight_decay);
  step.gradient_scale = static_cast<float>(scale);
  step.correction1 = static_cast<float>(1 - std::pow(rule.beta1, time));
  step.correction2_root = static_cast<float>(std::sqrt(1 - std::pow(rule.beta2, time)));
  return step;
}

// What all ranks of a group know of a step, float64: sums over ranks, but for the losses, of which
// each rank has its own slot.
struct StepSlots {
  static constexpr int64_t kSquareSum = 0, kStop = 1, kWritten = 2, kCounted = 3, kLosses = 4;
  static constexpr int64_t size(int64_t ranks) { return kLosses + ranks; }
};

// Of one rank.
struct RankNumbers {
  int64_t rank = 0, ranks = 1;
  double loss_scale = 1;
  double stop = 0, written = 0, counted = 1;
};

// On the device, between the steps.
struct UpdateState {
  AdamStep step;
  int64_t updates;   // made so far
  int64_t accepted;  // whether the newest step's is to be made: all that is known of it is finite
};

// [begin, begin + size) of the flat buffers.
struct UpdateBuffers {
  float *parameters, *gradients, *first, *second;
  uint16_t* copy;  // of the parameters, bfloat16; may be null
  int64_t size;
  int64_t decaying;  // weights before this index decay
};

inline constexpr int64_t kSquareParts = 1024;  // sums that are added up last

struct UpdateKernels {
  // parts [kSquareParts] = sums of squares, each of some of the values; of few values only the
  // first are written.
  void (*square_sums)(const float* values, int64_t size, double* parts, CUstream_st* stream);
  // numbers [StepSlots::size(ranks)] = those of this rank, and zeros for the others; loss = 0.
  void (*collect)(const RankNumbers& mine, const double* parts, int64_t num_parts, double* loss,
                  double* numbers, CUstream_st* stream);
  // The state's step and whether it is accepted, from the numbers, summed over ranks.
  void (*decide)(const UpdateRule& rule, double lr, int64_t ranks, const double* numbers,
                 UpdateState* state, CUstream_st* stream);
  // Applies the step, if it is accepted, and zeroes the gradients.
  void (*adamw)(const UpdateState* state, const UpdateBuffers& buffers, CUstream_st* stream);
};

const UpdateKernels& cuda_update_kernels();  // of kernels.cu

}  // namespace smalltalk
