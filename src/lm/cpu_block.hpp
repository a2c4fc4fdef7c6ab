// Forward and backward pass of one block of sequences on one thread, in buffers that are allocated
// once. A block is a few hundred tokens, so that its activations stay in cache.
// T tokens of the block, H hidden, F intermediate, Q width of q, k and v together.
#pragma once

#include <cstdint>
#include <vector>

#include "parameter_layout.hpp"

namespace smalltalk {

// Rotary tables [length, head_dim / 2], shared by all blocks of an engine.
struct RotaryTable {
  int64_t length = 0;
  std::vector<float> cosine, sine;
  void grow(const ModelConfig& config, int64_t min_length);
};

class CpuBlock {
 public:
  CpuBlock(const ModelConfig& config, const ParameterLayout& layout)
      : config_(config), layout_(layout) {}

  // inputs, targets [rows * length]. Adds to `gradients`; returns the sum of -log p.
  double train(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
               const int64_t* targets, int64_t rows, int64_t length, float scale, float* gradients);
  void target_log_probs(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
                        const int64_t* targets, int64_t rows, int64_t length, float* log_probs);
  // logits [rows * length, V].
  void logits(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
              int64_t rows, int64_t length, float* logits);

 private:
  // What the backward pass of a layer needs again. When only scoring, all layers share one.
  struct Layer {
    float *input, *attention_norm, *qkv, *attention, *middle, *feed_forward_norm, *gate_up, *act;
    float *attention_rstd, *feed_forward_rstd, *lse;
  };
  void reserve(int64_t rows, int64_t length, bool training);
  // Leaves the normalised last hidden state in final_norm_.
  void forward(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
               int64_t rows, int64_t length);
  void backward(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
                int64_t rows, int64_t length, float* gradients);

  ModelConfig config_;
  ParameterLayout layout_;
  int64_t rows_ = 0, length_ = 0;
  bool training_ = false;
  std::vector<float> arena_;
  std::vector<Layer> layers_;
  float *last_ = nullptr, *final_norm_ = nullptr, *final_rstd_ = nullptr;  // [T, H] [T, H] [T]
  float *d_residual_ = nullptr, *d_hidden_ = nullptr, *d_qkv_ = nullptr;   // [T, H] [T, H] [T, Q]
  float *d_gate_up_ = nullptr, *d_act_ = nullptr, *scratch_ = nullptr;     // [T, 2 F] [T, F]
};

}  // namespace smalltalk
