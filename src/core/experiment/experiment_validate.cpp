#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <limits>
#include <utility>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

template <typename... Args>
void require(bool condition, fmt::format_string<Args...> text, Args&&... args) {
  if (!condition) throw Error("experiment: " + fmt::format(text, std::forward<Args>(args)...));
}

void at_least(const std::string& key, int64_t value, int64_t least) {
  require(value >= least, "{} must be at least {}, not {}", key, least, value);
}

void between(const std::string& key, int64_t value, int64_t least, int64_t most) {
  at_least(key, value, least);
  require(value <= most, "{} must be at most {}, not {}", key, most, value);
}

void positive(const std::string& key, double value) {
  require(value > 0, "{} must be greater than 0, not {}", key, value);
}

void not_negative(const std::string& key, double value) {
  require(value >= 0, "{} must not be negative, not {}", key, value);
}

// Whether tokens can be counted in 64 bits, with some room for sums.
bool countable(std::initializer_list<int64_t> factors) {
  int64_t product = 16;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) return false;
  }
  return true;
}

void validate_model(const std::string& section, const ModelConfig& m) {
  between(section + ".hidden_size", m.hidden_size, 1, ModelLimits::hidden_size);
  between(section + ".num_layers", m.num_layers, 1, ModelLimits::num_layers);
  at_least(section + ".num_heads", m.num_heads, 1);
  at_least(section + ".num_kv_heads", m.num_kv_heads, 0);
  between(section + ".intermediate_size", m.intermediate_size, 0, ModelLimits::intermediate_size);
  require(m.hidden_size % m.num_heads == 0, "{0}.num_heads ({1}) must divide {0}.hidden_size ({2})",
          section, m.num_heads, m.hidden_size);
  require(m.head_dim() % 2 == 0,
          "{0}.hidden_size ({1}) / {0}.num_heads ({2}) is {3}, but rotary positions need an even "
          "width of a head",
          section, m.hidden_size, m.num_heads, m.head_dim());
  require(m.num_kv_heads == 0 || m.num_heads % m.num_kv_heads == 0,
          "{0}.num_kv_heads ({1}) must divide {0}.num_heads ({2})", section, m.num_kv_heads,
          m.num_heads);
  positive(section + ".rope_theta", m.rope_theta);
  positive(section + ".rms_norm_eps", m.rms_norm_eps);
  not_negative(section + ".init_std", m.init_std);
  not_negative(section + ".embedding_std", m.embedding_std);
}

void validate_train(const std::string& section, const TrainConfig& t) {
  at_least(section + ".batch_size", t.batch_size, 1);
  at_least(section + ".micro_batch_size", t.micro_batch_size, 0);
  at_least(section + ".warmup_steps", t.warmup_steps, 0);
  const bool wsd = t.lr_decay == Decay::wsd || t.lr_decay == Decay::wsd_sqrt;
  at_least(section + ".decay_steps", t.decay_steps, wsd ? 1 : 0);
  require(wsd || t.decay_steps == 0, "{0}.decay_steps ({1}) needs {0}.lr_decay wsd or wsd_sqrt",
          section, t.decay_steps);
  at_least(section + ".log_interval", t.log_interval, 1);
  at_least(section + ".save_interval", t.save_interval, 1);
  at_least(section + ".keep_last", t.keep_last, 1);
  at_least(section + ".keep_every", t.keep_every, 0);
  require(t.micro_batch_size == 0 || t.batch_size % t.micro_batch_size == 0,
          "{0}.micro_batch_size ({1}) must divide {0}.batch_size ({2})", section,
          t.micro_batch_size, t.batch_size);
  not_negative(section + ".outlier_zscore", t.outlier_zscore);
  positive(section + ".lr", t.lr);
  not_negative(section + ".min_lr", t.min_lr);
  require(t.min_lr <= t.lr, "{0}.min_lr ({1}) must not exceed {0}.lr ({2})", section, t.min_lr,
          t.lr);
  not_negative(section + ".weight_decay", t.weight_decay);
  not_negative(section + ".grad_clip", t.grad_clip);
  positive(section + ".adam_eps", t.adam_eps);
  require(t.adam_beta1 >= 0 && t.adam_beta1 < 1, "{}.adam_beta1 ({}) must lie in [0, 1)", section,
          t.adam_beta1);
  require(t.adam_beta2 >= 0 && t.adam_beta2 < 1, "{}.adam_beta2 ({}) must lie in [0, 1)", section,
          t.adam_beta2);
}

void validate_data(const DataConfig& d) {
  between("data.vocab_size", d.vocab_size, 1, ModelLimits::vocab_size);
  at_least("data.tokenizer_sample_bytes", d.tokenizer_sample_bytes, 1);
  between("data.seq_length", d.seq_length, 2, int64_t{1} << 24);
  require(d.order == TextOrder::file || d.packing == Packing::concat,
          "data.order = similar needs data.packing = concat: what is packed has an order already");
  require(!d.text_key.empty(), "data.text_key must name a field");
  require(d.max_bad_fraction >= 0 && d.max_bad_fraction <= 1,
          "data.max_bad_fraction ({}) must lie in [0, 1]", d.max_bad_fraction);
}

void validate_mixture(const Experiment& e) {
  const MixtureConfig& m = e.mixture;
  at_least("mixture.experts", m.experts, 0);
  require(m.experts <= std::numeric_limits<uint16_t>::max(),
          "mixture.experts ({}) must be at most 65535", m.experts);
  at_least("mixture.prefix_tokens", m.prefix_tokens, 2);  // one token to see, one to predict
  require(m.prefix_tokens <= e.data.seq_length,
          "mixture.prefix_tokens ({}) must not exceed data.seq_length ({})", m.prefix_tokens,
          e.data.seq_length);
  at_least("mixture.rounds", m.rounds, 1);
  at_least("mixture.sequences_per_round", m.sequences_per_round, 1);
  at_least("mixture.group_size", m.group_size, 0);
  require(countable({e.expert_train.steps, e.expert_train.batch_size, e.data.seq_length,
                     std::max<int64_t>(m.experts, 1)}),
          "expert.train_steps ({}) x expert.batch_size ({}) is too large", e.expert_train.steps,
          e.expert_train.batch_size);
  if (!e.has_mixture()) return;
  require(
      m.sharding == Sharding::routers || m.rounds > 1,
      "mixture.sharding = ngrams learns from the last third of mixture.rounds (1), of which the "
      "first is dealt out at random: 2 at least");
  const int64_t share = m.sequences_per_round / m.experts;
  require(e.router_train.batch_size <= share,
          "router.batch_size ({}) must not exceed the sequences of one router in a round, "
          "mixture.sequences_per_round ({}) / mixture.experts ({}) = {}",
          e.router_train.batch_size, m.sequences_per_round, m.experts, share);
  require(countable({m.rounds, m.sequences_per_round, e.data.seq_length, m.experts}),
          "mixture.rounds ({}) x mixture.sequences_per_round ({}) is too large", m.rounds,
          m.sequences_per_round);
  const TrainConfig& router = e.router_train;
  const int64_t router_steps = m.rounds * (share / router.batch_size);
  const bool fits = router.warmup_steps <= router_steps &&
                    router.decay_steps <= router_steps - router.warmup_steps;
  require(fits || m.experts == 1,  // whose router chooses nothing
          "router.warmup_steps ({}) and router.decay_steps ({}) must not exceed the steps of one "
          "router: mixture.rounds ({}) x mixture.sequences_per_round / mixture.experts / "
          "router.batch_size, which is {}",
          router.warmup_steps, router.decay_steps, m.rounds, router_steps);
}

// How an expert's batch is spread over the ranks of its group, where the file fixes their number.
void validate_group(const Experiment& e) {
  const int64_t ranks = e.mixture.group_size;
  if (ranks == 0) return;
  const int64_t batch = e.expert_train.batch_size;
  const int64_t micro = e.expert_train.micro_batch_size;
  require(batch % ranks == 0, "mixture.group_size ({}) must divide expert.batch_size ({})", ranks,
          batch);
  require(micro == 0 || (batch / ranks) % micro == 0,
          "expert.micro_batch_size ({}) must divide a rank's share of the batch, "
          "expert.batch_size ({}) / mixture.group_size ({}) = {}",
          micro, batch, ranks, batch / ranks);
}

void validate_lory(const Experiment& e) {
  const LoryConfig& lory = e.lory;
  between("lory.experts", lory.experts, 0, ModelLimits::merged_experts);
  require(lory.experts != 1, "lory.experts (1) would merge nothing: 2 at least, or 0 for none");
  at_least("lory.segment_tokens", lory.segment_tokens, 1);
  at_least("lory.train_steps", lory.train_steps, 0);
  require(lory.dense_warmup >= 0 && lory.dense_warmup < 1,
          "lory.dense_warmup ({}) must lie in [0, 1)", lory.dense_warmup);
  not_negative("lory.lr", lory.lr);
  require(lory.lr == 0 || lory.lr >= e.expert_train.min_lr,
          "lory.lr ({}) must not be below expert.min_lr ({}), where its schedule ends", lory.lr,
          e.expert_train.min_lr);
  require(countable({lory.train_steps, e.expert_train.batch_size, e.data.seq_length}),
          "lory.train_steps ({}) x expert.batch_size ({}) is too large", lory.train_steps,
          e.expert_train.batch_size);
  if (lory.experts == 0) return;
  require(lory.segment_tokens <= e.data.seq_length,
          "lory.segment_tokens ({}) must not exceed data.seq_length ({})", lory.segment_tokens,
          e.data.seq_length);
  try {
    static_cast<void>(e.lory_model().merging_layers());
  } catch (const Error& error) {
    throw Error(fmt::format("experiment: lory.layers: {}", error.what()));
  }
  if (!lory.tensor_parallel) return;
  require(e.lory_model().num_merging_layers() == e.expert_model.num_layers,
          "lory.tensor_parallel cuts the experts of all layers: leave out lory.layers (\"{}\")",
          lory.layers);
  require(!e.data.document_mask,
          "lory.tensor_parallel needs segments that all ranks know: it does not go with "
          "data.document_mask");
}

void validate_device(const DeviceConfig& d) {
  require(d.device == "cpu" || d.device == "cuda", "device.device must be cpu or cuda, not '{}'",
          d.device);
  require(d.precision == "float32" || d.precision == "bf16-mixed",
          "device.precision must be float32 or bf16-mixed, not '{}'", d.precision);
  require(d.precision != "bf16-mixed" || d.device == "cuda",
          "device.precision = \"bf16-mixed\" needs device.device = \"cuda\"; on the CPU only "
          "float32 is supported");
  between("device.threads", d.threads, 1, 1024);
  not_negative("device.flops_per_second", d.flops_per_second);
  d.traced_steps();
}

}  // namespace

DeviceConfig::Steps DeviceConfig::traced_steps() const {
  if (trace_steps.empty()) return {};
  Steps steps;
  const char* end = trace_steps.data() + trace_steps.size();
  const auto [colon, first_error] = std::from_chars(trace_steps.data(), end, steps.first);
  const bool first_good = first_error == std::errc() && colon != end && *colon == ':';
  const auto [rest, last_error] = std::from_chars(first_good ? colon + 1 : end, end, steps.last);
  require(first_good && last_error == std::errc() && rest == end && steps.first >= 0 &&
              steps.first < steps.last,
          "device.trace_steps must be two ascending steps such as \"10:20\", not '{}'",
          trace_steps);
  return steps;
}

void Experiment::validate() const {
  require(seed <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
          "seed ({}) must be less than 2^63, the largest integer of TOML", seed);
  validate_data(data);
  validate_model("router", router_model);
  validate_train("router", router_train);
  validate_model("expert", expert_model);
  at_least("expert.train_steps", expert_train.steps, 1);
  validate_train("expert", expert_train);
  require(expert_train.warmup_steps <= expert_train.steps &&
              expert_train.decay_steps <= expert_train.steps - expert_train.warmup_steps,
          "expert.warmup_steps ({}) and expert.decay_steps ({}) must not exceed expert.train_steps "
          "({})",
          expert_train.warmup_steps, expert_train.decay_steps, expert_train.steps);
  validate_mixture(*this);
  validate_group(*this);
  for (const auto& [key, lr] :
       {std::pair{"baselines.dense_lr", baselines.dense_lr},
        {"baselines.dense_large_batch_lr", baselines.dense_large_batch_lr}}) {
    not_negative(key, lr);
    require(lr == 0 || lr >= expert_train.min_lr,
            "{} ({}) must not be below expert.min_lr ({}), where its schedule ends", key, lr,
            expert_train.min_lr);
  }
  // A dense model takes at least as many steps as this.
  const int64_t before_decay = expert_train.steps - expert_train.decay_steps;
  between("baselines.dense_warmup_steps", baselines.dense_warmup_steps, 0,
          before_decay * std::max<int64_t>(mixture.experts, 1));
  between("baselines.dense_large_batch_warmup_steps", baselines.dense_large_batch_warmup_steps, 0,
          before_decay);
  require(has_mixture() || !baselines.dense_large_batch,
          "baselines.dense_large_batch has a batch of mixture.experts (0) experts': leave it out");
  require(has_mixture() || !baselines.tfidf_shards,
          "baselines.tfidf_shards are those of mixture.experts (0) experts: leave it out");
  require(has_mixture() || baselines.dense || lory.experts > 0,
          "mixture.experts = 0, baselines.dense = false and lory.experts = 0: there is no model to "
          "train");
  validate_lory(*this);
  validate_device(device);
}

}  // namespace smalltalk
