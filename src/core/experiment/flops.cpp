// B sequences of S tokens, H width, L layers, V vocabulary, E experts, M prefix tokens.
#include "smalltalk/core/experiment/flops.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "smalltalk/core/assignment/ngram_classifier.hpp"
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
  const double feed_forward = 2 * static_cast<double>(feed_forward_matrices(m)) * h * d_ff;
  // Two FLOPs for each weight of each expert, once a segment; and the router.
  double merging = 0;
  if (m.merges_experts()) {
    const auto experts = static_cast<double>(m.merged_experts);
    const double segments = std::ceil(s / static_cast<double>(m.segment_tokens));
    merging = static_cast<double>(m.num_merging_layers()) * segments / s * experts *
              (feed_forward + 2 * h);
  }
  const double blocks =
      static_cast<double>(m.num_layers) * (projections + attention + feed_forward);
  // Embedding, blocks, output projection, softmax.
  const double per_token = h + blocks + merging + 2 * h * v + 3 * v;
  return static_cast<double>(sequences) * s * per_token;
}

double train_flops(const ModelConfig& model, int64_t sequences, int64_t length) {
  return 3 * forward_flops(model, sequences, length);
}

MixtureFlops mixture_flops(const Experiment& experiment, int64_t num_sharded) {
  if (!experiment.has_mixture()) return {};
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
  if (experiment.mixture.sharding == Sharding::routers) {
    flops.sharding = num_experts * forward_flops(router, num_sharded, prefix);
  } else {
    const NgramClassifierOptions usual;
    const int64_t learned = std::min(usual.max_sample, experiment.mixture.rounds_that_teach() *
                                                           experiment.mixture.sequences_per_round);
    flops.sharding = ngram_flops(experiment.mixture.experts, prefix) *
                     static_cast<double>(num_sharded + 3 * usual.epochs * learned);
  }
  flops.expert_train =
      num_experts * train_flops(expert,
                                experiment.expert_train.steps * experiment.expert_train.batch_size,
                                seq_length);
  flops.inference_per_sequence =
      forward_flops(expert, 1, seq_length) + num_experts * forward_flops(router, 1, prefix);
  return flops;
}

double training_budget(const Experiment& experiment, int64_t num_sharded) {
  if (experiment.has_mixture()) return mixture_flops(experiment, num_sharded).total();
  const TrainConfig& train = experiment.expert_train;
  return dense_flops(experiment, train.batch_size, train.steps);
}

double dense_flops(const Experiment& experiment, int64_t batch, int64_t steps) {
  const ModelConfig model = with_vocabulary(experiment.expert_model, experiment);
  return static_cast<double>(steps) * train_flops(model, batch, experiment.data.seq_length);
}

int64_t lory_dense_steps(const Experiment& experiment, int64_t steps) {
  return static_cast<int64_t>(experiment.lory.dense_warmup * static_cast<double>(steps));
}

double lory_flops(const Experiment& experiment, int64_t batch, int64_t steps) {
  const ModelConfig model = with_vocabulary(experiment.lory_model(), experiment);
  const int64_t dense = lory_dense_steps(experiment, steps);
  return dense_flops(experiment, batch, dense) +
         static_cast<double>(steps - dense) * train_flops(model, batch, experiment.data.seq_length);
}

int64_t steps_for(double flops, const std::function<double(int64_t)>& flops_of) {
  ST_CHECK(flops >= 0 && flops_of(1) > 0);
  int64_t enough = 1;
  while (flops_of(enough) < flops) enough *= 2;
  int64_t least = 0;
  while (least < enough) {
    const int64_t middle = (least + enough) / 2;
    if (flops_of(middle) < flops) {
      least = middle + 1;
    } else {
      enough = middle;
    }
  }
  return enough;
}

int64_t parameter_count(const ModelConfig& model) {
  const ModelConfig m = model.resolved();
  const int64_t h = m.hidden_size;
  const int64_t attention = 2 * h * h + 2 * h * m.head_dim() * m.num_kv_heads;
  const int64_t feed_forward = feed_forward_matrices(m) * h * m.intermediate_size;
  const int64_t norms = 2 * h;
  const int64_t embeddings = (m.tie_embeddings ? 1 : 2) * m.vocab_size * h;
  const int64_t experts =
      m.num_merging_layers() * ((m.merged_experts - 1) * feed_forward + m.merged_experts * h);
  return embeddings + m.num_layers * (attention + feed_forward + norms) + experts + h;
}

}  // namespace smalltalk
