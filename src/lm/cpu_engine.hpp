// The transformer on the CPU in float32, written out by hand: no autograd, no allocation per step.
// Sequences are dealt to threads in contiguous ranges; every thread works block by block through
// the whole model with gradients of its own, which are added up in a fixed order. Results depend
// on the number of threads only through that order of summation.
#pragma once

#include <functional>
#include <vector>

#include "cpu_block.hpp"
#include "engine.hpp"

namespace smalltalk {

class CpuEngine : public Engine {
 public:
  CpuEngine(const ModelConfig& config, const ParameterLayout& layout, int threads);

  double accumulate_gradients(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                              float scale) override;
  void target_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                        std::span<float> log_probs) override;
  void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
              std::span<float> logits) override;
  void rebind(float* parameters, float* gradients) override;

 private:
  struct Worker {
    CpuBlock block;
    std::vector<int64_t> inputs, targets;  // of one block, [rows * length]
    std::vector<float> gradients;          // of workers other than the first
    double loss = 0;
  };
  // Calls work(worker, first row, rows) on all workers at once, rows cut into equal shares of
  // whole blocks.
  void for_shares(int64_t rows, int64_t block_rows,
                  const std::function<void(Worker&, int64_t, int64_t)>& work);

  ModelConfig config_;
  ParameterLayout layout_;
  RotaryTable rotary_;
  std::vector<Worker> workers_;
  float* parameters_ = nullptr;
  float* gradients_ = nullptr;
};

}  // namespace smalltalk
