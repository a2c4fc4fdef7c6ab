#include "lm/torch/torch_engine.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lm/torch/device.hpp"
#include "lm/torch/torch_loss.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {

constexpr int64_t kScoredRows = 64;  // at once: enough for a GPU's products

// A differentiable function of a few tensors, whose output is either kept, with what autograd
// saved, or computed again in the backward pass.
struct TorchEngine::Stage {
  Function function;
  Tensors inputs;     // leaves of autograd
  at::Tensor output;  // undefined: to be computed again

  void compute() {
    const at::AutoGradMode with_grad(true);
    output = function(inputs);
  }
};

struct TorchEngine::SavedLayer {
  at::Tensor input;  // all that is left of a layer that is computed again as a whole
  Stage attention_norm, attention, feed_forward_norm, activation;
};

struct TorchEngine::SavedStep {
  Positions positions;
  std::vector<SavedLayer> layers;
  Stage final_norm;
  at::Tensor d_out;   // [R, T, H], of the final norm's output
  at::Tensor losses;  // [R], float64 on the device
};

struct TorchEngine::RecordedStep {
  float scale;
  at::Tensor tokens;  // [R, rows, row_tokens]: read by the graphs
  SavedStep step;     // its losses are written by them
  std::unique_ptr<DeviceGraph> forward = cuda_device().make_graph(nullptr);
  std::unique_ptr<DeviceGraph> backward = cuda_device().make_graph(forward.get());
};

TorchEngine::TorchEngine(const ModelConfig& config, const ParameterLayout& layout,
                         const at::Tensor& parameters, const std::string& precision,
                         int64_t num_models)
    : config_(config),
      layout_(layout),
      device_(parameters.device()),
      type_(precision == "bf16-mixed" ? at::kBFloat16 : at::kFloat),
      num_models_(num_models),
      weights_(config, layout, device_, type_, num_models),
      clock_(device_) {
  ST_CHECK(num_models >= 1 && parameters.numel() >= num_models * layout.total);
  rebind(parameters.data_ptr<float>(), nullptr);
}

TorchEngine::~TorchEngine() = default;

void TorchEngine::rebind(float* parameters, float* gradients) {
  can_train_ = gradients != nullptr;
  recorded_.reset();
  weights_.rebind(parameters, gradients);
}

void TorchEngine::set_recompute(Recompute recompute) {
  if (recompute == recompute_) return;  // what was recorded still holds
  recompute_ = recompute;
  recorded_.reset();
}

// ---- Between the products -----------------------------------------------------------------------

at::Tensor TorchEngine::norm(const at::Tensor& x, const at::Tensor& weight) const {
  return rms_norm(x, weight, config_.rms_norm_eps, type_);
}

TorchEngine::Positions TorchEngine::positions_of(const at::Tensor& inputs) const {
  Positions positions{rotary_angles(config_, inputs.size(2), device_), {}};
  if (!config_.document_mask) return positions;
  // The number of documents begun so far; a token sees those of its own before it.
  const at::Tensor document = (inputs == config_.document_end).flatten(0, 1).cumsum(1);
  positions.visible = (document.unsqueeze(2) == document.unsqueeze(1)).tril().unsqueeze(1);
  return positions;
}

at::Tensor TorchEngine::counted(const at::Tensor& tokens) const {
  if (config_.document_end < 0) return {};
  const at::Tensor end = tokens == config_.document_end;
  const int64_t length = tokens.size(2) - 1;
  return (end.narrow(2, 0, length) & end.narrow(2, 1, length)).logical_not();
}

at::Tensor TorchEngine::attention(const at::Tensor& qkv, const Positions& positions) const {
  const RotaryAngles& rotary = positions.rotary;
  const int64_t length = rotary.cosine.size(0), dim = config_.head_dim();
  const int64_t heads = config_.num_heads, kv = config_.num_kv_heads;
  // Sequences of all models are alike here: [sequences, heads + 2 kv, length, d].
  const at::Tensor by_head = qkv.view({-1, length, heads + 2 * kv, dim}).transpose(1, 2);
  const at::Tensor query = rotate(by_head.narrow(1, 0, heads), rotary);
  at::Tensor key = rotate(by_head.narrow(1, heads, kv), rotary);
  at::Tensor value = by_head.narrow(1, heads + kv, kv);
  if (kv != heads) {
    key = key.repeat_interleave(heads / kv, 1);
    value = value.repeat_interleave(heads / kv, 1);
  }
  at::Tensor seen = positions.visible;  // of all models, [sequences, 1, length, length]
  if (seen.defined() && seen.size(0) < query.size(0)) {
    seen = seen.repeat({query.size(0) / seen.size(0), 1, 1, 1});
  }
  const auto mask = seen.defined() ? std::optional(seen) : std::nullopt;
  return at::scaled_dot_product_attention(query, key, value, mask, 0.0, !mask)
      .transpose(1, 2)
      .reshape({qkv.size(0), qkv.size(1), heads * dim});
}

// ---- Forward ------------------------------------------------------------------------------------

at::Tensor TorchEngine::to_device(std::span<const int64_t> tokens, int64_t sets, int64_t rows,
                                  int64_t row_tokens) const {
  ST_CHECK(static_cast<int64_t>(tokens.size()) == sets * rows * row_tokens);
  return at::from_blob(const_cast<int64_t*>(tokens.data()), {sets, rows, row_tokens}, at::kLong)
      .to(device_, /*non_blocking=*/false, /*copy=*/true);
}

at::Tensor TorchEngine::embed(const at::Tensor& inputs) const {
  const at::Tensor ids = inputs.flatten(1);
  if (num_models_ == 1) return at::embedding(weights_.embedding.value[0], ids);
  Tensors models;
  for (int64_t r = 0; r < num_models_; ++r) {
    models.push_back(at::embedding(weights_.embedding.value[r], ids[std::min(r, ids.size(0) - 1)]));
  }
  return at::stack(models);
}

at::Tensor TorchEngine::begin_layer(const TorchLayer& layer, const at::Tensor& x,
                                    const Positions& positions, bool keep_outputs,
                                    SavedLayer* saved, at::Tensor& activation_out) const {
  const auto run = [&](Stage SavedLayer::*member, const Function& function, Tensors inputs) {
    if (saved == nullptr) return function(inputs);
    for (at::Tensor& input : inputs) input = input.detach().requires_grad_();
    Stage& stage = saved->*member;
    stage = {function, std::move(inputs), {}};
    if (!keep_outputs) return function(stage.inputs);
    stage.compute();
    return stage.output.detach();
  };
  const Function normed = [this](const Tensors& in) { return norm(in[0], in[1]); };
  const Function attended = [this, positions](const Tensors& in) {
    return attention(in[0], positions);
  };
  const Function activated = [this](const Tensors& in) { return activate(config_, in[0]); };

  const at::Tensor attention_in =
      run(&SavedLayer::attention_norm, normed, {x, layer.attention_norm.value});
  const at::Tensor attention_out =
      run(&SavedLayer::attention, attended, {product(attention_in, layer.qkv)});
  const at::Tensor middle = x + product(attention_out, layer.output).to(at::kFloat);
  const at::Tensor feed_forward_in =
      run(&SavedLayer::feed_forward_norm, normed, {middle, layer.feed_forward_norm.value});
  activation_out =
      run(&SavedLayer::activation, activated, {product(feed_forward_in, layer.gate_up)});
  return middle;
}

at::Tensor TorchEngine::forward_layer(const TorchLayer& layer, const at::Tensor& x,
                                      const Positions& positions, bool keep_outputs,
                                      SavedLayer* saved) const {
  at::Tensor activation_out;
  const at::Tensor middle = begin_layer(layer, x, positions, keep_outputs, saved, activation_out);
  return middle + product(activation_out, layer.down).to(at::kFloat);
}

at::Tensor TorchEngine::hidden(const at::Tensor& inputs) {
  weights_.cast();
  const Positions positions = positions_of(inputs);
  at::Tensor x = embed(inputs);
  for (const TorchLayer& layer : weights_.layers) {
    const TraceSpan span("layer", &layer - weights_.layers.data());
    x = forward_layer(layer, x, positions, false, nullptr);
  }
  return norm(x, weights_.final_norm.value);
}

int64_t TorchEngine::rows_at_once(int64_t /*row_tokens*/) const { return kScoredRows; }

void TorchEngine::compute_log_probs(std::span<const int64_t> tokens, int64_t rows,
                                    int64_t row_tokens, std::span<float> log_probs,
                                    std::span<uint8_t> greedy) {
  ST_CHECK(rows <= kScoredRows);
  const at::NoGradGuard no_grad;
  // Always as many rows, filled up with token 0: products of another shape may round otherwise.
  const at::Tensor ids =
      at::constant_pad_nd(to_device(tokens, 1, rows, row_tokens), {0, 0, 0, kScoredRows - rows});
  const at::Tensor out = hidden(ids.narrow(2, 0, row_tokens - 1));
  const at::Tensor targets = ids.narrow(2, 1, row_tokens - 1).flatten();
  const at::Tensor all = counted(ids), counts = all.defined() ? all.flatten() : all;
  const int64_t size = rows * (row_tokens - 1);
  ST_CHECK(std::ssize(log_probs) == num_models_ * size);
  for (int64_t r = 0; r < num_models_; ++r) {
    const TargetScores scores =
        fused_target_scores(out[r], weights_.head.matrix[r], targets, counts);
    const at::Tensor of_rows = scores.log_probs.narrow(0, 0, size).to(at::kCPU);
    std::memcpy(log_probs.data() + r * size, of_rows.const_data_ptr<float>(), of_rows.nbytes());
    if (greedy.empty()) continue;
    const at::Tensor flags = scores.greedy.narrow(0, 0, size).to(at::kCPU);
    std::memcpy(greedy.data() + r * size, flags.const_data_ptr<uint8_t>(), flags.nbytes());
  }
}

void TorchEngine::logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<float> logits) {
  const at::NoGradGuard no_grad;
  const at::Tensor out = hidden(to_device(tokens, 1, rows, row_tokens));
  const at::Tensor result = product(out, weights_.head).to(at::kFloat).to(at::kCPU).contiguous();
  ST_CHECK(static_cast<int64_t>(logits.size()) == result.numel());
  std::memcpy(logits.data(), result.const_data_ptr<float>(), result.nbytes());
}

// ---- Backward -----------------------------------------------------------------------------------

TorchEngine::Tensors TorchEngine::backward_stage(Stage& stage, TorchWeight& weight,
                                                 const at::Tensor& d_out) const {
  if (!stage.output.defined()) stage.compute();
  const at::Tensor d_input = product_backward(stage.output.detach(), weight, d_out);
  Tensors gradients = torch::autograd::grad({stage.output}, stage.inputs, {d_input});
  stage = {};
  return gradients;
}

void TorchEngine::backward_layer(TorchLayer& layer, SavedLayer& saved, const Positions& positions,
                                 at::Tensor& d_x) const {
  if (saved.input.defined()) {
    at::Tensor activation_out;
    begin_layer(layer, saved.input, positions, true, &saved, activation_out);
    saved.input.reset();
  }
  const auto through_norm = [&](Stage& stage, TorchWeight& matrix, TorchWeight& norm_weight,
                                const at::Tensor& d_out) {
    const Tensors gradients = backward_stage(stage, matrix, d_out);
    d_x = d_x + gradients[0];
    norm_weight.gradient.add_(gradients[1]);
  };
  const at::Tensor d_up = backward_stage(saved.activation, layer.down, d_x.to(type_))[0];
  through_norm(saved.feed_forward_norm, layer.gate_up, layer.feed_forward_norm, d_up);
  const at::Tensor d_qkv = backward_stage(saved.attention, layer.output, d_x.to(type_))[0];
  through_norm(saved.attention_norm, layer.qkv, layer.attention_norm, d_qkv);
}

void TorchEngine::forward_step(const at::Tensor& tokens, float scale, SavedStep& step) {
  const int64_t length = tokens.size(2) - 1;
  weights_.cast();
  step.positions = positions_of(tokens.narrow(2, 0, length));
  step.layers.assign(weights_.layers.size(), {});
  at::Tensor x = embed(tokens.narrow(2, 0, length));
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const TraceSpan span("layer", static_cast<int64_t>(i));
    if (recompute_ == Recompute::full) {
      step.layers[i].input = x;
      x = forward_layer(weights_.layers[i], x, step.positions, false, nullptr);
    } else {
      x = forward_layer(weights_.layers[i], x, step.positions, recompute_ == Recompute::none,
                        &step.layers[i]);
    }
  }
  step.final_norm = {
      [this](const Tensors& in) { return norm(in[0], in[1]); },
      {x.detach().requires_grad_(), weights_.final_norm.value.detach().requires_grad_()},
      {}};
  step.final_norm.compute();
  const at::Tensor out = step.final_norm.output.detach();
  const at::Tensor targets = tokens.narrow(2, 1, length).flatten(1);
  const at::Tensor all = counted(tokens), counts = all.defined() ? all.flatten(1) : all;
  step.d_out = at::empty_like(out);
  Tensors losses;
  for (int64_t r = 0; r < num_models_; ++r) {
    at::Tensor d_hidden = step.d_out[r], d_head = weights_.head.gradient[r];
    losses.push_back(fused_cross_entropy(out[r], weights_.head.matrix[r], targets[r], scale,
                                         d_hidden, d_head, counts.defined() ? counts[r] : counts));
  }
  step.losses = at::stack(losses);
}

void TorchEngine::backward_step(const at::Tensor& tokens, const GradientsReady& ready,
                                SavedStep& step) {
  const auto finish = [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; ready && r < num_models_; ++r) {
      ready(r * layout_.total + begin, r * layout_.total + end);
    }
  };
  if (!config_.tie_embeddings) finish(layout_.head, layout_.blocks);
  const Tensors gradients =
      torch::autograd::grad({step.final_norm.output}, step.final_norm.inputs, {step.d_out});
  step.final_norm = {};
  step.d_out.reset();
  weights_.final_norm.gradient.add_(gradients[1]);
  at::Tensor d_x = gradients[0];
  for (int64_t i = config_.num_layers - 1; i >= 0; --i) {
    const TraceSpan span("layer", i);
    backward_layer(weights_.layers[i], step.layers[i], step.positions, d_x);
    finish(layout_.layers[i].qkv,
           i + 1 == config_.num_layers ? layout_.decay_size : layout_.layers[i + 1].qkv);
  }
  finish(layout_.decay_size, layout_.total);
  const at::Tensor ids = tokens.narrow(2, 0, tokens.size(2) - 1).flatten(1);
  for (int64_t r = 0; r < num_models_; ++r) {
    weights_.embedding.gradient[r].add_(
        at::embedding_dense_backward(d_x[r], ids[r], config_.vocab_size, -1, false));
  }
  finish(0, config_.tie_embeddings ? layout_.blocks : layout_.head);
}

std::vector<double> TorchEngine::accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                                      int64_t row_tokens, float scale,
                                                      const GradientsReady& ready) {
  ST_CHECK(can_train_);
  const at::NoGradGuard no_grad;
  at::Tensor ids = to_device(tokens, num_models_, rows, row_tokens);
  // Graphs keep memory of their own: an engine has them for all steps or for none.
  announces_ = announces_ || ready;
  const bool use_graphs = device_.is_cuda() && !announces_;
  if (!use_graphs) {
    recorded_.reset();
  } else if (!recorded_ || recorded_->tokens.sizes() != ids.sizes() || recorded_->scale != scale) {
    recorded_ = std::make_unique<RecordedStep>();
    recorded_->scale = scale;
    recorded_->tokens = ids;
  } else {
    ids = recorded_->tokens.copy_(ids);
  }
  SavedStep unrecorded;
  SavedStep& step = use_graphs ? recorded_->step : unrecorded;
  const auto forward = [&] { forward_step(ids, scale, step); };
  const auto backward = [&] { backward_step(ids, ready, step); };
  {
    const PhaseClock::Scope scope(clock_, "forward", &PhaseSeconds::forward);
    use_graphs ? recorded_->forward->run(forward) : forward();
  }
  {
    const PhaseClock::Scope scope(clock_, "backward", &PhaseSeconds::backward);
    use_graphs ? recorded_->backward->run(backward) : backward();
  }
  const at::Tensor losses = step.losses.to(at::kCPU);
  return {losses.const_data_ptr<double>(), losses.const_data_ptr<double>() + num_models_};
}

}  // namespace smalltalk
