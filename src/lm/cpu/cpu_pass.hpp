// A few sequences on their way through the layers and back, on one thread, in buffers that are
// allocated once. A pass is a few hundred tokens, so that its activations stay in cache. The output
// projection and its loss come between the two, outside (cpu_loss.hpp).
// T tokens of the pass, H hidden, F intermediate, Q width of q, k and v together.
#pragma once

#include <cstdint>
#include <vector>

#include "lm/cpu/cpu_attention.hpp"
#include "lm/cpu/merged_experts.hpp"
#include "lm/model/parameter_layout.hpp"
#include "smalltalk/lm/model/scoring.hpp"

namespace smalltalk {

// Rotary tables [length, head_dim / 2], shared by all passes of an engine.
struct RotaryTable {
  int64_t length = 0;
  std::vector<float> cosine, sine;
  void grow(const ModelConfig& config, int64_t min_length);
};

// What a forward pass keeps for a backward pass.
enum class Keep {
  nothing,   // scoring: there is none
  inputs,    // of each layer; all else is computed again ("full" recomputation)
  products,  // all but norms and activations, which are cheap to compute again ("selective")
  everything
};

class CpuPass {
 public:
  CpuPass(const ModelConfig& config, const ParameterLayout& layout)
      : config_(config), layout_(layout), experts_(config) {}

  // What the passes below work on, until the next call. inputs and starts [rows * length] must
  // outlive them; starts as in AttentionShape. Training merges as the model says, not `merging`.
  void begin(const float* parameters, const RotaryTable& rotary, const int64_t* inputs,
             const int32_t* starts, int64_t rows, int64_t length, Keep keep,
             const Merging& merging);
  void forward();
  int64_t tokens() const { return rows_ * length_; }
  const float* hidden() const { return final_norm_; }  // [T, H], normalised
  float* d_hidden() { return d_hidden_; }              // [T, H], to be written before backward()

  // From the last layer to the first. Gradients are added to `gradients`, which begins where the
  // blocks' matrices do (ParameterLayout::blocks).
  void backward_final_norm(float* gradients);
  void backward_layer(int64_t layer, float* gradients);
  const float* d_embedding() const { return d_residual_; }  // [T, H], after layer 0
  const int64_t* inputs() const { return inputs_; }

  float* scratch() { return scratch_; }

  // Of the first `rows` rows, behind forward(). REQUIRES Keep::nothing.
  std::vector<RowRouting> routing(int64_t rows) const;

  // Floats of all buffers.
  static int64_t memory_floats(const ModelConfig& config, int64_t rows, int64_t length, Keep keep);

 private:
  struct Layer {
    float *input, *attention_norm, *qkv, *attention, *middle, *feed_forward_norm, *gate_up, *act;
    float *attention_rstd, *feed_forward_rstd, *lse, *route;
  };
  // Calls take(pointer, floats) for every buffer.
  template <typename F>
  void for_buffers(F&& take);
  AttentionShape attention_shape() const;
  void forward_attention(int64_t layer);
  void forward_feed_forward(int64_t layer);  // up to the activation
  void activate(const Layer& layer);
  void add_feed_forward(int64_t layer, float* out);             // from the activation on
  void backward_feed_forward(int64_t layer, float* gradients);  // d_residual_ -> d_hidden_
  // Of all experts of a layer.
  ExpertMatrices gate_ups(int64_t layer) const;
  ExpertMatrices downs(int64_t layer) const;

  ModelConfig config_;
  ParameterLayout layout_;
  const float* parameters_ = nullptr;
  const RotaryTable* rotary_ = nullptr;
  const int64_t* inputs_ = nullptr;
  const int32_t* starts_ = nullptr;
  int64_t rows_ = 0, length_ = 0;
  Keep keep_ = Keep::nothing;
  std::vector<float> arena_;
  std::vector<Layer> layers_;
  float *last_ = nullptr, *final_norm_ = nullptr, *final_rstd_ = nullptr;  // [T, H] [T, H] [T]
  float *d_residual_ = nullptr, *d_hidden_ = nullptr, *d_qkv_ = nullptr;   // [T, H] [T, H] [T, Q]
  float *d_gate_up_ = nullptr, *d_act_ = nullptr, *scratch_ = nullptr;     // [T, 2 F] [T, F]
  float* d_route_ = nullptr;                                               // [S, E]
  bool leaky_ = false;
  MergedExperts experts_;
};

}  // namespace smalltalk
