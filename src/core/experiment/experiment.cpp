#include "smalltalk/core/experiment/experiment.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <tuple>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {
namespace {

// A field as a TOML value. Floats get the shortest digits that read back as the same number.

std::string toml_value(int64_t value) { return std::to_string(value); }
std::string toml_value(uint64_t value) { return std::to_string(value); }
std::string toml_value(bool value) { return value ? "true" : "false"; }

std::string toml_value(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";  // not an integer
  return text;
}

std::string toml_value(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      text += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
    } else {
      text += c;
    }
  }
  return text + "\"";
}

std::string toml_value(const std::vector<std::string>& values) {
  std::string text = "[";
  for (const std::string& value : values) {
    if (text.size() > 1) text += ", ";
    text += toml_value(value);
  }
  return text + "]";
}

std::string toml_value(FeedForward value) { return toml_value(to_string(value)); }
std::string toml_value(AssignmentMethod value) { return toml_value(to_string(value)); }
std::string toml_value(Decay value) { return toml_value(to_string(value)); }

std::string toml_value(Packing value) { return toml_value(to_string(value)); }
std::string toml_value(TextOrder value) { return toml_value(to_string(value)); }

std::string toml_value(Recompute value) { return toml_value(to_string(value)); }

std::string toml_value(SegmentRouting value) { return toml_value(to_string(value)); }

std::string toml_value(FirstSegment value) { return toml_value(to_string(value)); }
std::string toml_value(Sharding value) { return toml_value(to_string(value)); }

// "section.key" -> "section"; "" at the top level.
std::string section_of(const std::string& key) {
  const size_t dot = key.find('.');
  return dot == std::string::npos ? "" : key.substr(0, dot);
}

}  // namespace

ModelConfig ModelConfig::resolved() const {
  ModelConfig model = *this;
  if (model.num_kv_heads == 0) model.num_kv_heads = num_heads;
  if (model.intermediate_size == 0) {
    const int64_t two_thirds = (8 * hidden_size + 2) / 3;
    model.intermediate_size =
        feed_forward == FeedForward::relu2 ? 4 * hidden_size : (two_thirds + 7) / 8 * 8;
  }
  const double root = std::sqrt(static_cast<double>(hidden_size));
  if (model.init_std == 0) model.init_std = 0.5 / root;
  if (model.embedding_std == 0) model.embedding_std = 1 / root;
  return model;
}

void Experiment::adopt_tokens(int64_t vocab_size, int64_t end_token) {
  const bool documents = data.packing == Packing::documents || data.document_mask;
  for (ModelConfig* model : {&router_model, &expert_model}) {  // lory_model() copies the expert's
    model->vocab_size = vocab_size;
    model->document_end = documents ? end_token : -1;
    model->document_mask = data.document_mask;
  }
}

ModelConfig Experiment::lory_model() const {
  ModelConfig model = expert_model;
  model.merged_experts = lory.experts;
  model.segment_tokens = lory.segment_tokens;
  model.merged_layers = lory.layers;
  model.routing = lory.routing;
  model.first_segment = lory.first_segment;
  return model;
}

bool ModelConfig::computes_like(const ModelConfig& other) const {
  const auto all = [](const ModelConfig& c) {
    return std::tuple(c.vocab_size, c.document_end, c.document_mask, c.hidden_size, c.num_layers,
                      c.num_heads, c.num_kv_heads, c.intermediate_size, c.feed_forward,
                      c.tie_embeddings, c.rope_theta, c.rms_norm_eps, c.merged_experts,
                      c.segment_tokens, c.merged_layers, c.routing, c.first_segment);
  };
  return all(*this) == all(other);
}

ModelConfig ModelConfig::dense() const {
  ModelConfig model = *this;
  model.merged_experts = 0;
  model.segment_tokens = 0;
  model.merged_layers.clear();
  model.routing = SegmentRouting::previous;
  model.first_segment = FirstSegment::own;
  return model;
}

std::vector<bool> ModelConfig::merging_layers() const {
  std::vector<bool> merges(static_cast<size_t>(num_layers), merges_experts());
  if (!merges_experts() || merged_layers.empty()) return merges;
  merges.assign(merges.size(), false);
  const char* next = merged_layers.data();
  const char* const end = next + merged_layers.size();
  const auto fail = [&] {
    throw Error(
        fmt::format("merged layers '{}': write numbers from 0 to {} and ranges of them, as 2-5,7",
                    printable(merged_layers), num_layers - 1));
  };
  const auto number = [&] {
    int64_t value = 0;
    const auto [rest, error] = std::from_chars(next, end, value);
    if (error != std::errc() || value < 0 || value >= num_layers) fail();
    next = rest;
    return value;
  };
  for (;;) {
    const int64_t first = number();
    const int64_t last = next != end && *next == '-' ? (++next, number()) : first;
    if (last < first) fail();
    std::fill(merges.begin() + first, merges.begin() + last + 1, true);
    if (next == end) return merges;
    if (*next++ != ',') fail();
  }
}

int64_t ModelConfig::num_merging_layers() const {
  return std::ranges::count(merging_layers(), true);
}

std::string to_toml(const Experiment& experiment) {
  Experiment copy = experiment;  // visit_fields() hands out references that can be written to
  std::string text;
  std::string section;
  visit_fields(copy, [&](const std::string& key, const auto& field, const char*) {
    if (section_of(key) != section) {
      section = section_of(key);
      text += "\n[" + section + "]\n";
    }
    const std::string name = section.empty() ? key : key.substr(section.size() + 1);
    text += name + " = " + toml_value(field) + "\n";
  });
  return text;
}

bool decides_nothing(std::string_view key) {
  for (const char* free : {"name", "data.max_bad_fraction", "mixture.group_size", "device.threads",
                           "device.flops_per_second", "device.trace_steps", "baselines.dense",
                           "baselines.dense_large_batch", "baselines.random_shards",
                           "baselines.tfidf_shards", "lory.tensor_parallel"}) {
    if (key == free) return true;
  }
  for (const char* free :
       {".micro_batch_size", ".recompute", ".log_interval", ".save_interval", ".keep_last",
        ".keep_every", ".tensorboard", ".outlier_zscore", ".outlier_skip", ".skip_nonfinite"}) {
    if (key.ends_with(free)) return true;
  }
  return false;
}

bool decides(std::string_view key, Part part) {
  if (decides_nothing(key)) return false;
  if (part == Part::tokens) {
    return key == "data.tokenizer" || key == "data.vocab_size" ||
           key == "data.tokenizer_sample_bytes" || key == "data.text_key" ||
           key == "data.domain_key" || key == "data.lines" || key == "data.packing";
  }
  const bool schedule =
      key.starts_with("baselines.dense_") || key == "expert.train_steps" || key == "expert.lr" ||
      key == "expert.min_lr" || key == "expert.warmup_steps" || key == "expert.lr_decay" ||
      key == "expert.decay_steps" || key == "lory.train_steps" || key == "lory.lr";
  if (schedule || part == Part::schedule) return schedule && part == Part::schedule;
  if (part == Part::lory) return key.starts_with("lory.");
  if (key == "seed" || key == "data.seq_length" || key == "data.order" ||
      key == "data.document_mask" || key.starts_with("device.")) {
    return true;
  }
  if (part == Part::expert) return key.starts_with("expert.") || key == "mixture.sharding";
  if (key == "mixture.sharding") return false;
  return key.starts_with("router.") || key.starts_with("mixture.");
}

namespace {

template <typename Counts>
std::string hash_of_keys(Experiment experiment, Counts counts) {
  std::string text;
  visit_fields(experiment, [&](const std::string& key, const auto& field, const char*) {
    if (counts(key)) text += key + " = " + toml_value(field) + "\n";
  });
  return hash_text(text);
}

std::vector<std::pair<std::string, std::string>> keys_of(Experiment experiment) {
  std::vector<std::pair<std::string, std::string>> keys;
  visit_fields(experiment, [&](const std::string& key, const auto& field, const char*) {
    keys.emplace_back(key, toml_value(field));
  });
  return keys;
}

}  // namespace

std::string experiment_hash(const Experiment& experiment) {
  return hash_of_keys(experiment, [](std::string_view key) { return !decides_nothing(key); });
}

std::string part_hash(const Experiment& experiment, Part part) {
  return hash_of_keys(experiment, [part](std::string_view key) { return decides(key, part); });
}

std::vector<KeyDifference> differences(const Experiment& there, const Experiment& here) {
  const auto old_keys = keys_of(there);
  const auto new_keys = keys_of(here);
  std::vector<KeyDifference> found;
  for (size_t i = 0; i < old_keys.size(); ++i) {
    if (old_keys[i] == new_keys[i]) continue;
    found.push_back({old_keys[i].first, old_keys[i].second, new_keys[i].second});
  }
  return found;
}

std::string experiment_help() {
  Experiment defaults;
  std::string text;
  std::string section;
  visit_fields(defaults, [&](const std::string& key, const auto& field, const char* help) {
    if (section_of(key) != section) {
      section = section_of(key);
      text += "\n";
    }
    text += fmt::format("{:<48} {}\n", key + " = " + toml_value(field), help);
  });
  return text;
}

std::string to_string(FeedForward value) {
  return value == FeedForward::swiglu ? "swiglu" : "relu2";
}

std::string to_string(Packing value) { return value == Packing::concat ? "concat" : "documents"; }

std::string to_string(TextOrder value) { return value == TextOrder::file ? "file" : "similar"; }

std::string to_string(Recompute value) {
  if (value == Recompute::automatic) return "auto";
  if (value == Recompute::none) return "none";
  return value == Recompute::selective ? "selective" : "full";
}

std::string to_string(SegmentRouting value) {
  return value == SegmentRouting::previous ? "previous" : "prefix";
}

std::string to_string(FirstSegment value) { return value == FirstSegment::own ? "own" : "uniform"; }

std::string to_string(Sharding value) { return value == Sharding::routers ? "routers" : "ngrams"; }

}  // namespace smalltalk
