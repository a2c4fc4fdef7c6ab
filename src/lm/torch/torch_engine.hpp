// The transformer in LibTorch operations: the engine of GPUs, in float32 or, with precision
// "bf16-mixed", with float32 master weights and bfloat16 products. R models of one configuration
// compute as one, their matrix products batched.
//
// A block is four matrix products with something differentiable before each: norm, attention,
// norm, activation. The products and their gradients are written out, so that weight gradients go
// straight into the flat buffer, layer by layer; what lies between is differentiated by autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lm/model/engine.hpp"
#include "lm/model/parameter_layout.hpp"
#include "lm/torch/phase_clock.hpp"
#include "lm/torch/torch_ops.hpp"
#include "lm/torch/torch_weights.hpp"

namespace smalltalk {

class TorchEngine : public Engine {
 public:
  // `parameters` holds the flat buffers [R, layout.total], one after another; it decides the
  // device. Whatever is behind the last model is padding.
  TorchEngine(const ModelConfig& config, const ParameterLayout& layout,
              const at::Tensor& parameters, const std::string& precision, int64_t num_models = 1);
  ~TorchEngine() override;

  // With the shapes and the scale of the call before, a GPU launches CUDA graphs, unless any call
  // asked for `ready`.
  std::vector<double> accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                           int64_t row_tokens, float scale,
                                           const GradientsReady& ready) override;
  int64_t rows_at_once(int64_t row_tokens) const override;
  void compute_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<float> log_probs, std::span<uint8_t> greedy) override;
  // Of R models: logits [R, rows, row_tokens, V].
  void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
              std::span<float> logits) override;
  void rebind(float* parameters, float* gradients) override;
  void set_recompute(Recompute recompute) override;
  PhaseSeconds seconds() override { return clock_.seconds(); }

 private:
  struct Stage;
  struct SavedLayer;
  struct SavedStep;
  struct RecordedStep;
  // Where tokens stand in their sequences, and which they see.
  struct Positions {
    RotaryAngles rotary;
    at::Tensor
        visible;  // bool [sequences of all or of one model, 1, length, length]; or all before
  };
  using Tensors = std::vector<at::Tensor>;
  using Function = std::function<at::Tensor(const Tensors&)>;

  at::Tensor to_device(std::span<const int64_t> tokens, int64_t sets, int64_t rows,
                       int64_t row_tokens) const;  // [sets, rows, row_tokens], sets 1 or R

  Positions positions_of(const at::Tensor& inputs) const;  // [sets, rows, length]
  // Which targets are no padding, bool [sets, rows, row_tokens - 1]; undefined: all.
  at::Tensor counted(const at::Tensor& tokens) const;

  // Functions between the products; T = rows * length tokens of each model.
  at::Tensor norm(const at::Tensor& x, const at::Tensor& weight) const;  // [R, T, H]
  at::Tensor attention(const at::Tensor& qkv, const Positions& positions) const;

  at::Tensor embed(const at::Tensor& inputs) const;  // [R or 1, rows, length] -> [R, T, H] float32
  // Everything before the last product of a block; -> the residual stream there, and the product's
  // input in `activation`. Fills `saved`, if there is one, with what the backward pass needs.
  at::Tensor begin_layer(const TorchLayer& layer, const at::Tensor& x, const Positions& positions,
                         bool keep_outputs, SavedLayer* saved, at::Tensor& activation) const;
  at::Tensor forward_layer(const TorchLayer& layer, const at::Tensor& x, const Positions& positions,
                           bool keep_outputs, SavedLayer* saved) const;
  // d_x: the gradient of the block's output before, of its input after.
  void backward_layer(TorchLayer& layer, SavedLayer& saved, const Positions& positions,
                      at::Tensor& d_x) const;
  // Through `stage` and the product of its output with `weight`; -> gradients of its inputs.
  Tensors backward_stage(Stage& stage, TorchWeight& weight, const at::Tensor& d_out) const;
  at::Tensor hidden(const at::Tensor& inputs);  // inference: -> [R, T, H]
  // The two halves of a step. tokens [R, rows, row_tokens]; the loss belongs to the first.
  void forward_step(const at::Tensor& tokens, float scale, SavedStep& step);
  void backward_step(const at::Tensor& tokens, const GradientsReady& ready, SavedStep& step);

  ModelConfig config_;
  ParameterLayout layout_;
  at::Device device_;
  at::ScalarType type_;  // of the products
  int64_t num_models_;
  Recompute recompute_ = Recompute::none;
  TorchWeights weights_;
  bool can_train_ = false;  // there are gradient buffers
  std::unique_ptr<RecordedStep> recorded_;
  bool announces_ = false;  // a call asked for `ready`
  PhaseClock clock_;
};

}  // namespace smalltalk
