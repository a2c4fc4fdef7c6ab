#include "lm/model/parameter_layout.hpp"

#include <cmath>
#include <numbers>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/random.hpp"

namespace smalltalk {
namespace {

void check_config(const ModelConfig& c) {
  const auto require = [](bool ok, const std::string& what) {
    if (!ok) throw Error("model: " + what);
  };
  require(c.vocab_size >= 2, "vocab_size must be at least 2, is " + std::to_string(c.vocab_size));
  require(
      c.hidden_size >= 1 && c.num_layers >= 1 && c.num_heads >= 1 && c.num_kv_heads >= 1 &&
          c.intermediate_size >= 1,
      "hidden_size, num_layers, num_heads, num_kv_heads and intermediate_size must be positive");
  require(c.vocab_size <= ModelLimits::vocab_size && c.hidden_size <= ModelLimits::hidden_size &&
              c.intermediate_size <= ModelLimits::intermediate_size &&
              c.num_layers <= ModelLimits::num_layers,
          "vocab_size, hidden_size, intermediate_size or num_layers is larger than any model's");
  require(c.hidden_size % c.num_heads == 0, "num_heads (" + std::to_string(c.num_heads) +
                                                ") must divide hidden_size (" +
                                                std::to_string(c.hidden_size) + ")");
  require(c.head_dim() % 2 == 0, "the head dimension must be even for rotary embeddings, is " +
                                     std::to_string(c.head_dim()));
  require(c.num_heads % c.num_kv_heads == 0, "num_kv_heads must divide num_heads");
  require(c.merged_experts >= 0 && c.merged_experts <= ModelLimits::merged_experts,
          "merged_experts must be between 0 and " + std::to_string(ModelLimits::merged_experts));
  require(!c.merges_experts() || c.segment_tokens >= 1,
          "segment_tokens must be at least 1 where experts are merged");
}

}  // namespace

// With documents a rank would need the segments of the others' tokens.
void require_slices(const ModelConfig& given, int64_t ranks) {
  if (ranks == 1) return;
  const ModelConfig c = given.resolved();
  const auto require = [](bool ok, const std::string& what) {
    if (!ok) throw Error("a group cannot cut this model's experts: " + what);
  };
  require(c.num_merging_layers() == c.num_layers, "there are layers that merge none");
  require(!c.document_mask, "attention and segments stay within documents");
  require(c.intermediate_size % ranks == 0, "its " + std::to_string(ranks) +
                                                " ranks must divide intermediate_size (" +
                                                std::to_string(c.intermediate_size) + ")");
}

std::map<std::string_view, const ParameterSpec*> specs_by_name(const ParameterLayout& layout) {
  std::map<std::string_view, const ParameterSpec*> specs;
  for (const ParameterSpec& spec : layout.specs) specs[spec.name] = &spec;
  return specs;
}

ModelConfig sliced(const ModelConfig& config, ExpertSlice slice) {
  ModelConfig part = config;
  part.intermediate_size /= slice.ranks;
  return part;
}

SliceRuns slice_runs(const ParameterSpec& whole, const ParameterSpec& part, ExpertSlice slice) {
  if (part.shape == whole.shape) return {0, 1, whole.size, 0};
  if (part.shape[0] != whole.shape[0]) return {slice.rank * part.size, 1, part.size, 0};
  return {slice.rank * part.shape[1], part.shape[0], part.shape[1], whole.shape[1]};
}

ParameterLayout parameter_layout(const ModelConfig& whole, ExpertSlice slice) {
  check_config(whole);
  require_slices(whole, slice.ranks);
  const ModelConfig c = sliced(whole, slice);
  ParameterLayout layout;
  layout.slice = slice;
  const std::vector<bool> merges = c.merging_layers();
  const int64_t hidden = c.hidden_size, vocab = c.vocab_size, ff = c.intermediate_size;
  const int64_t q_out = c.num_heads * c.head_dim(), kv_out = c.num_kv_heads * c.head_dim();
  // Residual branches are summed 2 L times; their last matrices start smaller (GPT-2, section 2.3).
  const double branch_std = c.init_std / std::sqrt(2.0 * static_cast<double>(c.num_layers));
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, double init_std) {
    int64_t size = 1;
    for (int64_t extent : shape) size *= extent;
    layout.specs.push_back({name, std::move(shape), layout.total, size, init_std});
    layout.total += size;
    return layout.total - size;
  };

  const auto add_feed_forward = [&](const std::string& place) {
    const bool gated = c.feed_forward == FeedForward::swiglu;
    const int64_t begin = layout.total;
    if (gated) add(place + "gate_proj.weight", {ff, hidden}, c.init_std);
    add(place + "up_proj.weight", {ff, hidden}, c.init_std);
    add(place + "down_proj.weight", {hidden, ff}, branch_std);
    return begin;
  };
  const auto add_experts = [&](const std::string& prefix) {
    const int64_t begin = add_feed_forward(prefix + "mlp.experts.0.");
    layout.expert_stride = layout.total - begin;
    for (int64_t e = 1; e < c.merged_experts; ++e) {
      add_feed_forward(prefix + "mlp.experts." + std::to_string(e) + ".");
    }
    return begin;
  };
  const auto prefix_of = [](int64_t layer) {
    return "model.layers." + std::to_string(layer) + ".";
  };

  std::vector<int64_t> slices;  // where each layer's begin
  for (int64_t i = 0; !slice.is_all() && i < c.num_layers; ++i) {
    slices.push_back(add_experts(prefix_of(i)));
  }
  const int64_t unit = kPieceFloats * slice.ranks;
  if (!slice.is_all()) layout.total = (layout.total + unit - 1) / unit * unit;
  layout.sliced = layout.total;

  layout.embedding = add("model.embed_tokens.weight", {vocab, hidden}, c.embedding_std);
  layout.head =
      c.tie_embeddings ? layout.embedding : add("lm_head.weight", {vocab, hidden}, c.embedding_std);
  layout.blocks = layout.total;
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = prefix_of(i);
    LayerOffsets layer;
    layer.qkv = add(prefix + "self_attn.q_proj.weight", {q_out, hidden}, c.init_std);
    add(prefix + "self_attn.k_proj.weight", {kv_out, hidden}, c.init_std);
    add(prefix + "self_attn.v_proj.weight", {kv_out, hidden}, c.init_std);
    layer.output = add(prefix + "self_attn.o_proj.weight", {hidden, q_out}, branch_std);
    layer.merges = merges[static_cast<size_t>(i)];
    if (layer.merges) {
      // At random: a router of zeros would weigh all experts alike for ever.
      layer.router = add(prefix + "mlp.gate.weight", {c.merged_experts, hidden},
                         1 / std::sqrt(static_cast<double>(hidden)));
      layer.gate_up = slice.is_all() ? add_experts(prefix) : slices[static_cast<size_t>(i)];
    } else {
      layer.gate_up = add_feed_forward(prefix + "mlp.");
    }
    layer.down = layer.gate_up + gate_up_width(c) * hidden;
    layout.layers.push_back(layer);
  }

  layout.decay_size = layout.total;
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = prefix_of(i);
    layout.layers[i].attention_norm = add(prefix + "input_layernorm.weight", {hidden}, 0);
    layout.layers[i].feed_forward_norm =
        add(prefix + "post_attention_layernorm.weight", {hidden}, 0);
  }
  layout.final_norm = add("model.norm.weight", {hidden}, 0);
  return layout;
}

std::string name_in_dense(const std::string& name) {
  const std::string router = ".mlp.gate.", experts = ".mlp.experts.";
  if (name.find(router) != std::string::npos) return {};
  const size_t at = name.find(experts);
  if (at == std::string::npos) return name;
  const size_t behind_index = name.find('.', at + experts.size());
  return name.substr(0, at) + ".mlp" + name.substr(behind_index);
}

void init_parameter(const ParameterSpec& spec, uint64_t seed, float* values) {
  if (spec.init_std == 0) {
    for (int64_t i = 0; i < spec.size; ++i) values[i] = 1.0F;
    return;
  }
  const uint64_t key64 = derive_seed(seed, "init " + spec.name);
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(key64),
                                       static_cast<uint32_t>(key64 >> 32)};
  // One Philox block gives four words, hence two Box-Muller pairs, hence four normals.
  for (int64_t i = 0; i < spec.size; i += 4) {
    const auto block = static_cast<uint64_t>(i / 4);
    const auto words =
        philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0}, key);
    for (int pair = 0; pair < 2; ++pair) {
      const double u = (words[2 * pair] + 0.5) * 0x1p-32;  // in (0, 1): the logarithm is finite
      const double angle = 2 * std::numbers::pi * words[2 * pair + 1] * 0x1p-32;
      const double radius = spec.init_std * std::sqrt(-2 * std::log(u));
      const int64_t at = i + 2 * pair;
      if (at < spec.size) values[at] = static_cast<float>(radius * std::cos(angle));
      if (at + 1 < spec.size) values[at + 1] = static_cast<float>(radius * std::sin(angle));
    }
  }
}

}  // namespace smalltalk
