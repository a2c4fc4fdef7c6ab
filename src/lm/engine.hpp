// What computes a transformer. Two of them: CpuEngine, written out by hand for small models on few
// cores, and TorchEngine, LibTorch with autograd, for GPUs (and for tests, on the CPU).
#pragma once

#include <cstdint>
#include <span>

namespace smalltalk {

class Engine {
 public:
  virtual ~Engine() = default;
  // tokens [rows, row_tokens]: every row predicts its tokens 1 .. row_tokens - 1. Adds to the
  // gradient buffer the gradients of `scale` times the sum of -log p; returns that sum, unscaled.
  virtual double accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                      int64_t row_tokens, float scale) = 0;
  // log_probs [rows, row_tokens - 1].
  virtual void target_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                std::span<float> log_probs) = 0;
  // logits [rows, row_tokens, V].
  virtual void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                      std::span<float> logits) = 0;
  // The flat buffers have moved.
  virtual void rebind(float* parameters, float* gradients) = 0;
};

}  // namespace smalltalk
