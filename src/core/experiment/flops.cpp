// B sequences of S tokens, H width, L layers, V vocabulary, E experts, M prefix tokens.
#include "smalltalk/core/experiment/flops.hpp"

#include <cmath>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

int64_t feed_forward_matrices(const ModelConfig& model) {
  return model.feed_forward == FeedForward::swiglu ? 3 : 2;
}

// Before a tokenizer exists, the one that will be trained has the size that was asked for.
ModelConfig with_vocabulary(ModelConfig model, const Experiment& experiment) {
  if (model.vocab_size == 0) model.vocab_size = experiment.data.vocab_size;
  return model;
}

}  // namespace

double forward_flops(const ModelConfig& model, int64_t sequences, int64_t length) {
  const ModelConfig m = model.resolved();
  ST_CHECK(m.vocab_size > 0);
  const auto h = static_cast<double>(m.hidden_size);
  const auto h_kv = static_cast<double>(m.head_dim() * m.num_kv_heads);
  const auto d_ff = static_cast<double>(m.intermediate_size);
  const auto v = static_cast<double>(m.vocab_size);
  const auto s = static_cast<double>(length);
  // Two FLOPs per weight and token: query and output [H, H], key and value [H, H_kv], then scores
  // and mixing of S positions, which the paper counts without the causal half saved.
  const double projections = 4 * h * h + 4 * h * h_kv;
  const double attention = 4 * s * h;
  double feed_forward = 2 * static_cast<double>(feed_forward_matrices(m)) * h * d_ff;
  // Merging: two FLOPs for each weight of each expert, once a segment; and the router.
  if (m.merges_experts()) {
    const auto experts = static_cast<double>(m.merged_experts);
    const double segments = std::ceil(s / static_cast<double>(m.segment_tokens));
    feed_forward += segments / s * experts * (feed_forward + 2 * h);
  }
  const double block = projections + attention + feed_forward;
  // Embedding, blocks, output projection, softmax.
  const double per_token = h + static_cast<double>(m.num_layers) * block + 2 * h * v + 3 * v;
  return static_cast<double>(sequences) * s * per_token;
}

double train_flops(const ModelConfig& model, int64_t sequences, int64_t length) {
  return 3 * forward_flops(model, sequences, length);
}

MixtureFlops mixture_flops(const Experiment& experiment, int64_t num_sharded) {
  const ModelConfig router = with_vocabulary(experiment.router_model, experiment);
  const ModelConfig expert = with_vocabulary(experiment.expert_model, experiment);
  const auto num_experts = static_cast<double>(experiment.mixture.experts);
  const int64_t seq_length = experiment.data.seq_length;
  const int64_t prefix = experiment.mixture.prefix_tokens;
  const int64_t routed = experiment.mixture.rounds * experiment.mixture.sequences_per_round;

  MixtureFlops flops;
  flops.router_train = train_flops(router, routed, prefix);
  flops.router_train_upper = train_flops(router, routed, seq_length);
  // Every router scores every sequence, as the paper counts it: one E-step for each round.
  flops.router_scoring = num_experts * forward_flops(router, routed, prefix);
  flops.sharding = num_experts * forward_flops(router, num_sharded, prefix);
  flops.expert_train =
      num_experts * train_flops(expert,
                                experiment.expert_train.steps * experiment.expert_train.batch_size,
                                seq_length);
  flops.inference_per_sequence =
      forward_flops(expert, 1, seq_length) + num_experts * forward_flops(router, 1, prefix);
  return flops;
}

int64_t dense_steps(const Experiment& experiment, int64_t batch, double flops) {
  ST_CHECK(batch >= 1 && flops >= 0);
  const ModelConfig model = with_vocabulary(experiment.expert_model, experiment);
  const double step = train_flops(model, batch, experiment.data.seq_length);
  auto steps = static_cast<int64_t>(std::ceil(flops / step));
  // The division may have rounded across a whole number.
  while (static_cast<double>(steps) * step < flops) ++steps;
  while (steps > 0 && static_cast<double>(steps - 1) * step >= flops) --steps;
  return steps;
}

int64_t parameter_count(const ModelConfig& model) {
  const ModelConfig m = model.resolved();
  const int64_t h = m.hidden_size;
  const int64_t attention = 2 * h * h + 2 * h * m.head_dim() * m.num_kv_heads;
  const int64_t feed_forward = feed_forward_matrices(m) * h * m.intermediate_size;
  const int64_t experts = m.merges_experts() ? m.merged_experts : 1;
  const int64_t router = m.merged_experts * h;
  const int64_t norms = 2 * h;
  const int64_t embeddings = (m.tie_embeddings ? 1 : 2) * m.vocab_size * h;
  return embeddings + m.num_layers * (attention + experts * feed_forward + router + norms) + h;
}

}  // namespace smalltalk
