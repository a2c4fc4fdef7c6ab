#include "smalltalk/core/experiment/experiment.hpp"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

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

std::string toml_value(Recompute value) { return toml_value(to_string(value)); }

// "section.key" -> "section"; "" at the top level.
std::string section_of(const std::string& key) {
  const size_t dot = key.find('.');
  return dot == std::string::npos ? "" : key.substr(0, dot);
}

// Keys that decide which sequences an expert gets, but not how it is trained.
bool decides_routing(std::string_view key) {
  return key == "seed" || key.starts_with("data.") || key.starts_with("router.") ||
         (key.starts_with("mixture.") && key != "mixture.group_size") || key == "device.device" ||
         key == "device.precision";
}

// Keys that may change between two runs of the same computation.
bool decides_nothing(std::string_view key) {
  return key == "name" || key.ends_with(".recompute") || key.ends_with(".log_interval") ||
         key.ends_with(".save_interval") || key.ends_with(".keep_last") ||
         key.ends_with(".keep_every") || key.ends_with(".tensorboard") || key == "device.threads" ||
         key == "device.flops_per_second" || key == "device.trace_steps" ||
         key == "baselines.dense" || key == "baselines.dense_large_batch" ||
         key == "baselines.random_shards" || key == "baselines.tfidf_shards";
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

namespace {

template <typename Counts>
std::string hash_of_keys(Experiment experiment, Counts counts) {
  std::string text;
  visit_fields(experiment, [&](const std::string& key, const auto& field, const char*) {
    if (!decides_nothing(key) && counts(key)) text += key + " = " + toml_value(field) + "\n";
  });
  return hash_text(text);
}

}  // namespace

std::string experiment_hash(const Experiment& experiment) {
  return hash_of_keys(experiment, [](std::string_view) { return true; });
}

std::string routing_hash(const Experiment& experiment) {
  return hash_of_keys(experiment, decides_routing);
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

std::string to_string(Recompute value) {
  if (value == Recompute::none) return "none";
  return value == Recompute::selective ? "selective" : "full";
}

std::string to_string(Decay value) { return value == Decay::constant ? "constant" : "cosine"; }

}  // namespace smalltalk
