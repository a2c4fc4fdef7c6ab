#include "lm/torch/torch_engine.hpp"

#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "lm/torch/block_ops.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {

namespace {

constexpr int64_t kScoredTokens = 1 << 14;  // at once: enough for a GPU's products

// While it lives, attention on a GPU is computed by kernels that add up in a fixed order: flash,
// or, where there is a mask or the type is float32, LibTorch's "memory efficient" one. cuDNN's
// gradients differ from run to run.
class FixedOrder {
 public:
  FixedOrder()
      : had_cudnn_(context().userEnabledCuDNNSDP()), was_(context().deterministicAlgorithms()) {
    context().setSDPUseCuDNN(false);
    context().setDeterministicFillUninitializedMemory(false);
    context().setDeterministicAlgorithms(true, /*warn_only=*/true);
  }
  ~FixedOrder() {
    context().setSDPUseCuDNN(had_cudnn_);
    context().setDeterministicAlgorithms(was_, false);
  }
  FixedOrder(const FixedOrder&) = delete;

 private:
  static at::Context& context() { return at::globalContext(); }
  bool had_cudnn_, was_;
};

std::string name_of(at::SDPBackend backend) {
  switch (backend) {
    case at::SDPBackend::flash_attention:
      return "flash";
    case at::SDPBackend::efficient_attention:
      return "memory efficient";
    case at::SDPBackend::math:
      return "unfused, which is slow";
    default:
      return "the library's";
  }
}

}  // namespace

// What the backward pass needs of attention.
struct TorchEngine::Attention {
  Tensors heads;      // queries, keys, values: leaves of autograd
  at::Tensor output;  // [R, T, heads * dim], with its history
};

// What is left undefined is computed again.
struct TorchEngine::SavedLayer {
  Normed attention_norm;
  Attention attention;
  Normed feed_forward_norm;
  at::Tensor up, activation;
  at::Tensor route;       // weights of merged experts [S, E]
  at::Tensor all_routes;  // of all ranks' segments: the same, but for slices of experts

  void drop_outputs() {
    attention_norm.out.reset();
    feed_forward_norm.out.reset();
    activation.reset();
  }
  void drop_all_but_input() {
    const at::Tensor input = attention_norm.sum;
    *this = {};
    attention_norm.sum = input;
  }
};

// The residual stream is `sum` plus the last product, `delta`, which the next norm adds.
struct TorchEngine::Stream {
  at::Tensor sum;    // [R, T, H] float32
  at::Tensor delta;  // [R, T, H], of the type of the products; undefined: nothing to add
};

struct TorchEngine::SavedStep {
  Positions positions;
  std::vector<SavedLayer> layers;
  Normed final_norm;
  at::Tensor d_out;   // [R, T, H], of the final norm's output
  at::Tensor losses;  // [R], float64 on the device
};

struct TorchEngine::RecordedStep {
  RecordedStep(TorchEngine& engine, at::Tensor ids, MergedSegments its_segments, float its_scale)
      : tokens(std::move(ids)),
        segments(std::move(its_segments)),
        scale(its_scale),
        forward(engine.make_graph_(nullptr)),
        backward(engine.make_graph_(forward.get())) {}

  at::Tensor tokens;  // [R, rows, row_tokens]: read by the graphs
  MergedSegments segments;
  float scale;
  SavedStep step;  // its losses are written by them
  std::unique_ptr<DeviceGraph> forward, backward;
};

struct TorchEngine::RecordedScores {
  at::Tensor tokens;  // [1, rows, row_tokens]: read by the graph
  Merging merging;    // to which segments are cut
  MergedSegments segments;
  TargetScores scores;  // written by it
  std::unique_ptr<DeviceGraph> graph;
};

TorchEngine::TorchEngine(const ModelConfig& config, const ParameterLayout& layout,
                         at::Device device, const std::string& precision, int64_t num_models)
    : config_(config),
      layout_(layout),
      device_(device),
      type_(precision == "bf16-mixed" ? at::kBFloat16 : at::kFloat),
      num_models_(num_models),
      weights_(config, layout, device_, type_, num_models),
      clock_(device_) {
  if (device_.is_cuda()) {
    make_graph_ = [](const DeviceGraph* before) { return cuda_device().make_graph(before); };
  }
  ST_CHECK(num_models >= 1 && (num_models == 1 || !config.merges_experts()));
}

TorchEngine::~TorchEngine() = default;

void TorchEngine::rebind(const ModelBuffers& buffers) {
  can_train_ = buffers.gradients != nullptr;
  recorded_.reset();
  recorded_scores_.reset();
  weights_.rebind(buffers);
}

void TorchEngine::begin_training(const TrainingPlan& plan) {
  if (plan == plan_) return;  // what was recorded still holds
  plan_ = plan;
  recorded_.reset();
}

// ---- Forward ------------------------------------------------------------------------------------

std::vector<Segment> TorchEngine::cut(std::span<const int64_t> tokens, int64_t rows,
                                      int64_t row_tokens, bool targets, int64_t all_rows,
                                      const Merging& merging) const {
  const int64_t length = row_tokens - (targets ? 1 : 0);
  std::vector<int32_t> starts;
  if (config_.document_mask) {
    starts = document_starts(tokens, rows, row_tokens, targets, config_.document_end);
    starts.resize(static_cast<size_t>(all_rows * length));
  }
  return cut_into_segments(config_, all_rows, length, starts.empty() ? nullptr : starts.data(),
                           merging.prompt_tokens);
}

MergedSegments TorchEngine::segments_of(std::span<const int64_t> tokens, int64_t rows,
                                        int64_t row_tokens, bool targets, int64_t all_rows,
                                        const Merging& merging) const {
  if (!config_.merges_experts()) return {};
  const bool leaky = merging.leaky || merging.prompt_tokens > 0;
  return {config_, cut(tokens, rows, row_tokens, targets, all_rows, merging),
          row_tokens - (targets ? 1 : 0), leaky, device_};
}

bool TorchEngine::can_record() const {
  return make_graph_ && !(config_.merges_experts() && config_.document_mask);
}

TorchEngine::Positions TorchEngine::positions_of(const at::Tensor& inputs,
                                                 const MergedSegments& segments) const {
  Positions positions{rotary_angles(config_, inputs.size(2), device_), {}, segments, segments};
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

TorchEngine::Attention TorchEngine::attend(at::Tensor qkv, const Positions& positions,
                                           bool keep) const {
  const Heads heads = split_heads(config_, qkv, positions.rotary);
  Attention attention{{heads.query, heads.key, heads.value}, {}};
  const at::AutoGradMode with_grad(keep);
  if (keep) {
    for (at::Tensor& each : attention.heads) each = each.detach().requires_grad_();
  }
  const at::Tensor& query = attention.heads[0];
  at::Tensor key = attention.heads[1], value = attention.heads[2];
  if (config_.num_kv_heads != config_.num_heads) {
    key = key.repeat_interleave(config_.num_heads / config_.num_kv_heads, 1);
    value = value.repeat_interleave(config_.num_heads / config_.num_kv_heads, 1);
  }
  at::Tensor seen = positions.visible;  // of all models, [sequences, 1, length, length]
  if (seen.defined() && seen.size(0) < query.size(0)) {
    seen = seen.repeat({query.size(0) / seen.size(0), 1, 1, 1});
  }
  const auto mask = seen.defined() ? std::optional(seen) : std::nullopt;
  std::optional<FixedOrder> fixed;
  if (device_.is_cuda()) {
    fixed.emplace();
    if (attention_.empty()) {
      attention_ = name_of(
          static_cast<at::SDPBackend>(at::_fused_sdp_choice(query, key, value, mask, 0.0, !mask)));
    }
  }
  attention.output = at::scaled_dot_product_attention(query, key, value, mask, 0.0, !mask)
                         .transpose(1, 2)
                         .reshape({qkv.size(0), qkv.size(1), -1});
  return attention;
}

at::Tensor TorchEngine::to_device(std::span<const int64_t> tokens, int64_t sets, int64_t rows,
                                  int64_t row_tokens) const {
  ST_CHECK(static_cast<int64_t>(tokens.size()) == sets * rows * row_tokens);
  return copied_to(device_, tokens).view({sets, rows, row_tokens});
}

at::Tensor TorchEngine::to_score(std::span<const int64_t> tokens, int64_t rows,
                                 int64_t row_tokens) const {
  // Filled up with a token that ends no document.
  return at::constant_pad_nd(to_device(tokens, 1, rows, row_tokens),
                             {0, 0, 0, rows_at_once(row_tokens) - rows},
                             config_.document_end == 0 ? 1 : 0);
}

at::Tensor TorchEngine::embed(const at::Tensor& inputs) const {
  const at::Tensor ids = inputs.flatten(1);
  if (num_models_ == 1) return at::embedding(weights_.embedding.value[0], ids).to(at::kFloat);
  Tensors models;
  for (int64_t r = 0; r < num_models_; ++r) {
    models.push_back(at::embedding(weights_.embedding.value[r], ids[std::min(r, ids.size(0) - 1)]));
  }
  return at::stack(models).to(at::kFloat);
}

Normed TorchEngine::normed(const Stream& x, const TorchWeight& weight) const {
  return add_norm(x.sum, x.delta, weight.value, config_.rms_norm_eps, type_);
}

TorchEngine::Stream TorchEngine::forward_layer(const TorchLayer& layer, const Stream& x,
                                               const Positions& positions, SavedLayer* saved,
                                               Tensors* routes) const {
  const Normed attention_norm = normed(x, layer.attention_norm);
  Attention attention = attend(product(attention_norm.out, layer.qkv), positions, saved != nullptr);
  const Stream middle{attention_norm.sum, product(attention.output.detach(), layer.output)};
  const Normed feed_forward_norm = normed(middle, layer.feed_forward_norm);
  at::Tensor route, all_routes;
  if (layer.merges()) {
    route = positions.segments.route(feed_forward_norm.out[0], layer.router.value[0]);
    all_routes = gathered(positions, route);
    if (routes != nullptr) routes->push_back(route);
  }
  const auto times = [&](const at::Tensor& in, const TorchWeight& weight) {
    if (!layer.merges()) return product(in, weight);
    return positions.all_segments.product(in[0], weight.value, all_routes).unsqueeze(0);
  };
  const at::Tensor up = times(gathered(positions, feed_forward_norm.out), layer.gate_up);
  const at::Tensor activated = activation(config_, up);
  if (saved != nullptr) {
    *saved = {attention_norm, std::move(attention), feed_forward_norm, up, activated, route,
              all_routes};
  }
  return {feed_forward_norm.sum, summed(positions, times(activated, layer.down))};
}

// [1, T, ...] are rows of tokens, [S, E] are not.
at::Tensor TorchEngine::gathered(const Positions& positions, const at::Tensor& x) {
  if (positions.exchange == nullptr) return x;
  return x.dim() == 2 ? positions.exchange->gather(x)
                      : positions.exchange->gather(x[0]).unsqueeze(0);
}

at::Tensor TorchEngine::summed(const Positions& positions, const at::Tensor& x) {
  if (positions.exchange == nullptr) return x;
  return x.dim() == 2 ? positions.exchange->sum(x) : positions.exchange->sum(x[0]).unsqueeze(0);
}

at::Tensor TorchEngine::hidden(const at::Tensor& inputs, const MergedSegments& segments,
                               Tensors* routes) const {
  const Positions positions = positions_of(inputs, segments);
  Stream x{embed(inputs), {}};
  for (const TorchLayer& layer : weights_.layers) {
    const TraceSpan span("layer", &layer - weights_.layers.data());
    x = forward_layer(layer, x, positions, nullptr, routes);
  }
  return normed(x, weights_.final_norm).out;
}

int64_t TorchEngine::rows_at_once(int64_t row_tokens) const {
  return std::max<int64_t>(1, kScoredTokens / std::max<int64_t>(1, row_tokens - 1));
}

TargetScores TorchEngine::scores(const at::Tensor& tokens, const MergedSegments& segments) const {
  const int64_t length = tokens.size(2) - 1;
  const at::Tensor out = hidden(tokens.narrow(2, 0, length), segments);
  const at::Tensor targets = tokens.narrow(2, 1, length).flatten();
  const at::Tensor all = counted(tokens), counts = all.defined() ? all.flatten() : all;
  Tensors log_probs, greedy;
  for (int64_t r = 0; r < num_models_; ++r) {
    const TargetScores of = fused_target_scores(out[r], weights_.head.value[r], targets, counts);
    log_probs.push_back(of.log_probs);
    greedy.push_back(of.greedy);
  }
  return {at::stack(log_probs), at::stack(greedy)};
}

void TorchEngine::compute_log_probs(std::span<const int64_t> tokens, int64_t rows,
                                    int64_t row_tokens, std::span<float> log_probs,
                                    std::span<uint8_t> greedy, const Merging& merging) {
  const int64_t at_once = rows_at_once(row_tokens);
  ST_CHECK(rows <= at_once);
  const at::NoGradGuard no_grad;
  const at::Tensor ids = to_score(tokens, rows, row_tokens);
  const auto segments = [&] {
    return segments_of(tokens, rows, row_tokens, true, at_once, merging);
  };
  TargetScores unrecorded;
  if (can_record()) {
    if (!recorded_scores_ || recorded_scores_->tokens.sizes() != ids.sizes() ||
        recorded_scores_->merging != merging) {
      recorded_scores_.reset();  // its memory is free before other is taken
      recorded_scores_ = std::make_unique<RecordedScores>(ids, merging, segments(), TargetScores{},
                                                          make_graph_(nullptr));
    } else {
      recorded_scores_->tokens.copy_(ids);
    }
    RecordedScores* const recorded = recorded_scores_.get();
    recorded->graph->run(
        [this, recorded] { recorded->scores = scores(recorded->tokens, recorded->segments); });
  } else {
    unrecorded = scores(ids, segments());
  }
  const TargetScores& result = can_record() ? recorded_scores_->scores : unrecorded;
  const int64_t size = rows * (row_tokens - 1);
  ST_CHECK(std::ssize(log_probs) == num_models_ * size);
  const auto copy = [&](const at::Tensor& from, auto to) {
    const at::Tensor host = from.narrow(1, 0, size).to(at::kCPU).contiguous();
    std::memcpy(to.data(), host.const_data_ptr(), host.nbytes());
  };
  copy(result.log_probs, log_probs);
  if (!greedy.empty()) copy(result.greedy, greedy);
}

std::vector<RowRouting> TorchEngine::routing(std::span<const int64_t> tokens, int64_t rows,
                                             int64_t row_tokens) {
  ST_CHECK(config_.merges_experts());
  const int64_t at_once = rows_at_once(row_tokens), length = row_tokens - 1;
  ST_CHECK(rows <= at_once);
  const at::NoGradGuard no_grad;
  Tensors routes;
  hidden(to_score(tokens, rows, row_tokens).narrow(2, 0, length),
         segments_of(tokens, rows, row_tokens, true, at_once, {}), &routes);
  std::vector<const float*> layers;
  for (at::Tensor& route : routes) {
    route = route.to(at::kCPU).contiguous();
    layers.push_back(route.const_data_ptr<float>());
  }
  return routing_by_row(cut(tokens, rows, row_tokens, true, at_once, {}), config_.merged_experts,
                        layers, rows, length);
}

void TorchEngine::sum_hidden_states(std::span<const int64_t> tokens, int64_t rows,
                                    int64_t row_tokens, std::span<const int64_t> lengths,
                                    std::span<double> sums) {
  ST_CHECK(num_models_ == 1);
  const int64_t at_once = rows_at_once(row_tokens), length = row_tokens - 1;
  ST_CHECK(rows <= at_once);
  const at::NoGradGuard no_grad;
  const at::Tensor states = hidden(to_score(tokens, rows, row_tokens).narrow(2, 0, length),
                                   segments_of(tokens, rows, row_tokens, true, at_once, {}))
                                .view({at_once, length, config_.hidden_size});
  // Of rows that are not there, too: sums of another shape may be formed in another order.
  std::vector<int64_t> ends(lengths.begin(), lengths.end());
  ends.resize(static_cast<size_t>(at_once));
  const at::Tensor behind = at::arange(length, states.options().dtype(at::kLong)).unsqueeze(0) >=
                            copied_to(device_, ends).unsqueeze(1);
  const at::Tensor result = states.masked_fill(behind.unsqueeze(2), 0)
                                .sum(1, false, at::kDouble)
                                .narrow(0, 0, rows)
                                .to(at::kCPU)
                                .contiguous();
  ST_CHECK(std::ssize(sums) == result.numel());
  std::memcpy(sums.data(), result.const_data_ptr<double>(), result.nbytes());
}

void TorchEngine::logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<float> logits) {
  const at::NoGradGuard no_grad;
  const at::Tensor out = hidden(to_device(tokens, 1, rows, row_tokens),
                                segments_of(tokens, rows, row_tokens, false, rows, {}));
  const at::Tensor result = product(out, weights_.head).to(at::kFloat).to(at::kCPU).contiguous();
  ST_CHECK(static_cast<int64_t>(logits.size()) == result.numel());
  std::memcpy(logits.data(), result.const_data_ptr<float>(), result.nbytes());
}

// ---- Backward -----------------------------------------------------------------------------------

void TorchEngine::backward_layer(TorchLayer& layer, SavedLayer& saved, const Positions& positions,
                                 at::Tensor& d_x, at::Tensor& d_delta) const {
  if (!saved.attention.output.defined()) {
    const Stream input{saved.attention_norm.sum, {}};
    forward_layer(layer, input, positions, &saved);
  }
  const auto output_of = [&](Normed& norm, const TorchWeight& weight) {
    return norm.out.defined() ? norm.out
                              : norm_again(norm, weight.value, config_.rms_norm_eps, type_);
  };
  const auto through_norm = [&](Normed& norm, TorchWeight& weight, const auto& d_of) {
    const at::Tensor d_norm = d_of(output_of(norm, weight));
    d_delta = norm_backward(d_norm, norm, weight.value, d_x, weight.gradient);
    norm = {};
  };
  {
    at::Tensor d_routes;
    if (layer.merges()) d_routes = at::zeros_like(saved.all_routes);
    const auto back_from = [&](TorchWeight& weight, const at::Tensor& in, const at::Tensor& d_out) {
      if (!layer.merges()) return product_backward(in, weight, d_out);
      return positions.all_segments
          .product_backward(in[0], weight, saved.all_routes, d_out[0], d_routes)
          .unsqueeze(0);
    };
    at::Tensor d_up;
    {
      const at::Tensor activated =
          saved.activation.defined() ? saved.activation : activation(config_, saved.up);
      saved.activation.reset();
      d_up = back_from(layer.down, activated, gathered(positions, d_delta));
    }
    d_up = activation_backward(config_, saved.up, d_up);
    saved.up.reset();
    through_norm(saved.feed_forward_norm, layer.feed_forward_norm, [&](const at::Tensor& in) {
      const at::Tensor d_in =
          summed(positions, back_from(layer.gate_up, gathered(positions, in), d_up));
      if (layer.merges()) {
        at::Tensor own = d_in[0];
        positions.segments.route_backward(in[0], layer.router, saved.route,
                                          summed(positions, d_routes), own);
      }
      return d_in;
    });
  }
  Attention& attention = saved.attention;
  const at::Tensor d_attention = product_backward(attention.output.detach(), layer.output, d_delta);
  std::optional<FixedOrder> fixed;
  if (device_.is_cuda()) fixed.emplace();
  const Tensors d_heads = torch::autograd::grad({attention.output}, attention.heads, {d_attention});
  attention = {};
  const at::Tensor d_qkv = split_heads_backward(config_, {d_heads[0], d_heads[1], d_heads[2]},
                                                positions.rotary, num_models_);
  through_norm(saved.attention_norm, layer.attention_norm,
               [&](const at::Tensor& in) { return product_backward(in, layer.qkv, d_qkv); });
}

std::pair<int64_t, int64_t> TorchEngine::matrices_of(int64_t layer) const {
  return {layout_.layers[layer].qkv,
          layer + 1 == config_.num_layers ? layout_.decay_size : layout_.layers[layer + 1].qkv};
}

void TorchEngine::forward_step(const at::Tensor& tokens, const MergedSegments& segments,
                               float scale, const Exchange& exchange, SavedStep& step) {
  const auto need = [&](int64_t begin, int64_t end) {
    if (exchange.needed) exchange.needed(begin, end);
  };
  const int64_t length = tokens.size(2) - 1;
  need(layout_.embedding, layout_.embedding + config_.vocab_size * config_.hidden_size);
  need(layout_.decay_size, layout_.total);
  step.positions = positions_of(tokens.narrow(2, 0, length), segments);
  if (exchange.gather) {
    const int64_t all_rows = tokens.size(1) * layout_.slice.ranks;
    step.positions.all_segments =
        segments_of({}, 0, length + 1, true, all_rows, merging_in_training());
    step.positions.exchange = &exchange;
  }
  step.layers.assign(weights_.layers.size(), {});
  Stream x{embed(tokens.narrow(2, 0, length)), {}};
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const TraceSpan span("layer", static_cast<int64_t>(i));
    const auto [begin, end] = matrices_of(static_cast<int64_t>(i));
    need(begin, end);
    SavedLayer& saved = step.layers[i];
    x = forward_layer(weights_.layers[i], x, step.positions, &saved);
    if (plan_.recompute == Recompute::selective) saved.drop_outputs();
    if (plan_.recompute == Recompute::full) saved.drop_all_but_input();
  }
  step.final_norm = normed(x, weights_.final_norm);
  need(layout_.head, layout_.head + config_.vocab_size * config_.hidden_size);
  const at::Tensor out = step.final_norm.out;
  const at::Tensor targets = tokens.narrow(2, 1, length).flatten(1);
  const at::Tensor all = counted(tokens), counts = all.defined() ? all.flatten(1) : all;
  step.d_out = at::empty_like(out);
  Tensors losses;
  for (int64_t r = 0; r < num_models_; ++r) {
    at::Tensor d_hidden = step.d_out[r], d_head = weights_.head.gradient[r];
    losses.push_back(fused_cross_entropy(out[r], weights_.head.value[r], targets[r], scale,
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
  at::Tensor d_x = at::zeros_like(step.final_norm.sum);
  at::Tensor d_delta = norm_backward(step.d_out, step.final_norm, weights_.final_norm.value, d_x,
                                     weights_.final_norm.gradient);
  step.final_norm = {};
  step.d_out.reset();
  for (int64_t i = config_.num_layers - 1; i >= 0; --i) {
    const TraceSpan span("layer", i);
    backward_layer(weights_.layers[i], step.layers[i], step.positions, d_x, d_delta);
    const auto [begin, end] = matrices_of(i);
    finish(begin, end);
  }
  finish(layout_.decay_size, layout_.total);
  const at::Tensor ids = tokens.narrow(2, 0, tokens.size(2) - 1).flatten(1);
  for (int64_t r = 0; r < num_models_; ++r) {
    weights_.embedding.gradient[r].add_(
        at::embedding_dense_backward(d_x[r], ids[r], config_.vocab_size, -1, false));
  }
  finish(layout_.embedding, config_.tie_embeddings ? layout_.blocks : layout_.head);
}

LossSums TorchEngine::accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                           int64_t row_tokens, float scale,
                                           const Exchange& exchange) {
  ST_CHECK(can_train_);
  const at::NoGradGuard no_grad;
  at::Tensor ids = to_device(tokens, num_models_, rows, row_tokens);
  const auto segments = [&] {
    return segments_of(tokens, rows, row_tokens, true, rows, merging_in_training());
  };
  const bool use_graphs = can_record() && !plan_.announces;
  ST_CHECK((!exchange.ready && !exchange.needed) || plan_.announces);
  ST_CHECK(static_cast<bool>(exchange.gather) == !layout_.slice.is_all());
  SavedStep unrecorded;
  if (use_graphs) {
    if (!recorded_ || recorded_->tokens.sizes() != ids.sizes() || recorded_->scale != scale) {
      recorded_.reset();  // its memory is free before other is taken
      recorded_ = std::make_unique<RecordedStep>(*this, ids, segments(), scale);
    } else {
      recorded_->tokens.copy_(ids);
    }
  }
  // What is recorded may use nothing but what stays.
  RecordedStep* const recorded = recorded_.get();
  SavedStep& step = use_graphs ? recorded->step : unrecorded;
  {
    const PhaseClock::Scope scope(clock_, "forward", &PhaseSeconds::forward);
    if (use_graphs) {
      recorded->forward->run([this, recorded] {
        forward_step(recorded->tokens, recorded->segments, recorded->scale, {}, recorded->step);
      });
    } else {
      forward_step(ids, segments(), scale, exchange, step);
    }
  }
  {
    const PhaseClock::Scope scope(clock_, "backward", &PhaseSeconds::backward);
    if (use_graphs) {
      recorded->backward->run(
          [this, recorded] { backward_step(recorded->tokens, {}, recorded->step); });
    } else {
      backward_step(ids, exchange.ready, step);
    }
  }
  losses_ = step.losses;
  const auto values = [sums = losses_] {
    const at::Tensor host = sums.to(at::kCPU);
    const auto* data = host.const_data_ptr<double>();
    return std::vector<double>(data, data + host.numel());
  };
  return {values, losses_.const_data_ptr<double>()};
}

}  // namespace smalltalk
