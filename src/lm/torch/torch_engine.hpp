// The transformer in LibTorch operations: the engine of GPUs, in float32 or, with precision
// "bf16-mixed", with float32 master weights and bfloat16 products. R models of one configuration
// compute as one, their matrix products batched.
//
// A block is four matrix products with something before each: norm, attention, norm, activation.
// All is written out, forward and backward (block_ops.hpp), but for attention itself, which is the
// library's with its autograd. Weight gradients go straight into the flat buffer, layer by layer.
// Where a layer merges experts, torch_experts.hpp takes the place of its feed-forward's products.
// Of slices of experts (ExpertSlice) each rank computes for the tokens of all: their inputs and
// weights are gathered in front of the first product, and outputs summed behind the second.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lm/model/engine.hpp"
#include "lm/model/parameter_layout.hpp"
#include "lm/torch/block_ops.hpp"
#include "lm/torch/device.hpp"
#include "lm/torch/phase_clock.hpp"
#include "lm/torch/torch_experts.hpp"
#include "lm/torch/torch_loss.hpp"
#include "lm/torch/torch_ops.hpp"
#include "lm/torch/torch_weights.hpp"

namespace smalltalk {

class TorchEngine : public Engine {
 public:
  // REQUIRES one model where experts are merged: routers, which are batched, never do.
  TorchEngine(const ModelConfig& config, const ParameterLayout& layout, at::Device device,
              const std::string& precision, int64_t num_models = 1);
  ~TorchEngine() override;

  // Where the plan announces nothing, a GPU launches CUDA graphs from the third call of the same
  // shapes and scale on; not where segments depend on the tokens (torch_experts.hpp). REQUIRES a
  // plan that announces if there is an exchange.
  LossSums accumulate_gradients(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                float scale, const Exchange& exchange) override;
  int64_t rows_at_once(int64_t row_tokens) const override;
  void compute_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<float> log_probs, std::span<uint8_t> greedy,
                         const Merging& merging = {}) override;
  std::vector<RowRouting> routing(std::span<const int64_t> tokens, int64_t rows,
                                  int64_t row_tokens) override;
  void sum_hidden_states(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<const int64_t> lengths, std::span<double> sums) override;
  // Of R models: logits [R, rows, row_tokens, V].
  void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
              std::span<float> logits) override;
  void rebind(const ModelBuffers& buffers) override;
  void begin_training(const TrainingPlan& plan) override;
  PhaseSeconds seconds() override { return clock_.seconds(); }

  std::string attention() const override { return attention_; }

  // What records steps where there is no GPU, for tests.
  using MakeGraph = std::function<std::unique_ptr<DeviceGraph>(const DeviceGraph* before)>;
  void record_with(MakeGraph make_graph) { make_graph_ = std::move(make_graph); }

 private:
  struct Attention;
  struct Stream;
  struct SavedLayer;
  struct SavedStep;
  struct RecordedStep;
  struct RecordedScores;
  // Where tokens stand in their sequences, and which they see.
  struct Positions {
    RotaryAngles rotary;
    at::Tensor
        visible;  // bool [sequences of all or of one model, 1, length, length]; or all before
    MergedSegments segments;
    // Of slices of experts: the segments of all ranks' tokens, which go through each slice.
    MergedSegments all_segments;
    const Exchange* exchange = nullptr;
  };
  using Tensors = std::vector<at::Tensor>;

  at::Tensor to_device(std::span<const int64_t> tokens, int64_t sets, int64_t rows,
                       int64_t row_tokens) const;  // [sets, rows, row_tokens], sets 1 or R

  // tokens [rows, row_tokens] as [1, rows_at_once, row_tokens]: always as many rows, as products of
  // another shape may round otherwise.
  at::Tensor to_score(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens) const;

  // The segments of `all_rows` rows, which begin with those of `tokens` [rows, row_tokens] and end
  // in rows without documents; the last tokens are left out if they are targets alone.
  std::vector<Segment> cut(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                           bool targets, int64_t all_rows, const Merging& merging) const;
  MergedSegments segments_of(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                             bool targets, int64_t all_rows, const Merging& merging) const;
  Merging merging_in_training() const {
    return {.leaky = config_.first_segment == FirstSegment::own};
  }
  // x [T, ...] of this rank -> that of all ranks [ranks * T, ...], if the experts are slices; and
  // back, summed over the ranks.
  static at::Tensor gathered(const Positions& positions, const at::Tensor& x);
  static at::Tensor summed(const Positions& positions, const at::Tensor& x);
  // inputs [sets, rows, length]
  Positions positions_of(const at::Tensor& inputs, const MergedSegments& segments) const;
  bool can_record() const;
  // Which targets are no padding, bool [sets, rows, row_tokens - 1]; undefined: all.
  at::Tensor counted(const at::Tensor& tokens) const;

  at::Tensor embed(const at::Tensor& inputs) const;  // [R or 1, rows, length] -> [R, T, H] float32
  Normed normed(const Stream& x, const TorchWeight& weight) const;
  // qkv [R, T, ...]; its heads are turned in place. `keep`: for the backward pass.
  Attention attend(at::Tensor qkv, const Positions& positions, bool keep) const;
  // Fills `saved`, if there is one, with all that the backward pass needs, and adds the weights of
  // merged experts to `routes`, if there are such.
  Stream forward_layer(const TorchLayer& layer, const Stream& x, const Positions& positions,
                       SavedLayer* saved, Tensors* routes = nullptr) const;
  // d_x: the gradient of the stream behind the block before, in front of it after, float32;
  // d_delta: the same in the type of the products.
  void backward_layer(TorchLayer& layer, SavedLayer& saved, const Positions& positions,
                      at::Tensor& d_x, at::Tensor& d_delta) const;
  // Inference: -> [R, T, H]
  at::Tensor hidden(const at::Tensor& inputs, const MergedSegments& segments,
                    Tensors* routes = nullptr) const;
  // tokens [1, rows, row_tokens]; of all models, [R, rows * (row_tokens - 1)] each.
  TargetScores scores(const at::Tensor& tokens, const MergedSegments& segments) const;
  // The two halves of a step. tokens [R, rows, row_tokens]; the loss belongs to the first.
  void forward_step(const at::Tensor& tokens, const MergedSegments& segments, float scale,
                    const Exchange& exchange, SavedStep& step);
  void backward_step(const at::Tensor& tokens, const GradientsReady& ready, SavedStep& step);
  // Parameters of a layer's matrices: [first, second) of the flat buffer.
  std::pair<int64_t, int64_t> matrices_of(int64_t layer) const;

  ModelConfig config_;
  ParameterLayout layout_;
  at::Device device_;
  at::ScalarType type_;  // of the products
  int64_t num_models_;
  TrainingPlan plan_;
  TorchWeights weights_;
  bool can_train_ = false;  // there are gradient buffers
  MakeGraph make_graph_;    // empty: nothing is recorded
  std::unique_ptr<RecordedStep> recorded_;
  std::unique_ptr<RecordedScores> recorded_scores_;
  at::Tensor losses_;  // of the newest call [R], float64 on the device
  mutable std::string attention_;
  PhaseClock clock_;
};

}  // namespace smalltalk
