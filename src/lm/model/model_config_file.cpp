#include "lm/model/model_config_file.hpp"

#include <initializer_list>
#include <limits>
#include <type_traits>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"

namespace smalltalk {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string metadata_value(const std::map<std::string, std::string>& metadata,
                           const std::string& key, const std::string& otherwise) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? otherwise : found->second;
}

// The value of a key that must be there, with the right type.
template <typename T>
T required(const json& j, const char* key, const std::filesystem::path& path) {
  const auto found = j.find(key);
  if (found != j.end()) {
    if constexpr (std::is_same_v<T, int64_t>) {  // get() would round, and wrap around
      const bool fits = !found->is_number_unsigned() ||
                        found->template get<uint64_t>() <= std::numeric_limits<int64_t>::max();
      if (found->is_number_integer() && fits) return found->template get<T>();
    } else if (std::is_same_v<T, double> ? found->is_number() : found->type() == json(T()).type()) {
      return found->template get<T>();
    }
  }
  throw Error("'" + path.string() + "': key '" + key + "' is missing or has the wrong type");
}

template <typename Enum>
Enum one_of(const json& j, const char* key, std::initializer_list<Enum> values,
            const std::filesystem::path& path) {
  const auto name = required<std::string>(j, key, path);
  for (const Enum value : values) {
    if (to_string(value) == name) return value;
  }
  throw Error("'" + path.string() + "': " + key + " '" + printable(name) + "' is not supported");
}

void refuse(const json& j, const char* key, const std::filesystem::path& path) {
  if (j.contains(key) && j[key].is_boolean() && j[key].get<bool>()) {
    throw Error("'" + path.string() + "': " + key + " is not supported");
  }
}

double read_rope_theta(const json& j, const std::filesystem::path& path) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!j.contains(key) || !j[key].is_object()) continue;
    const json& rope = j[key];
    const char* key_of_type = rope.contains("rope_type") ? "rope_type" : "type";
    const std::string type =
        rope.contains(key_of_type) ? required<std::string>(rope, key_of_type, path) : "default";
    if (type != "default") {
      throw Error("'" + path.string() + "': rotary scaling of type '" + printable(type) +
                  "' is not supported");
    }
    if (rope.contains("rope_theta")) return required<double>(rope, "rope_theta", path);
  }
  return j.contains("rope_theta") ? required<double>(j, "rope_theta", path) : 10000.0;
}

}  // namespace

std::string model_config_text(const ModelConfig& c,
                              const std::map<std::string, std::string>& metadata) {
  const bool swiglu = c.feed_forward == FeedForward::swiglu;
  ordered_json j;
  j["architectures"] = {swiglu ? "LlamaForCausalLM" : "ArceeForCausalLM"};
  j["model_type"] = swiglu ? "llama" : "arcee";
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.hidden_size;
  j["intermediate_size"] = c.intermediate_size;
  j["num_hidden_layers"] = c.num_layers;
  j["num_attention_heads"] = c.num_heads;
  j["num_key_value_heads"] = c.num_kv_heads;
  j["head_dim"] = c.head_dim();
  j["hidden_act"] = swiglu ? "silu" : "relu2";
  // Rotary positions have no limit of their own; evaluators take this for the context length.
  j["max_position_embeddings"] =
      std::stoll(metadata_value(metadata, "smalltalk.seq_length", "2048"));
  j["rms_norm_eps"] = c.rms_norm_eps;
  j["initializer_range"] = c.init_std;
  j["attention_bias"] = false;
  j["attention_dropout"] = 0.0;
  j["mlp_bias"] = false;
  j["tie_word_embeddings"] = c.tie_embeddings;
  // Of the tokenizers that `prepare` trains: a text begins behind the end of another.
  j["bos_token_id"] = 2;
  j["eos_token_id"] = 2;
  j["pad_token_id"] = nullptr;
  j["use_cache"] = true;
  // transformers 4 reads the first form, 5 the second; each ignores the other's.
  j["rope_theta"] = c.rope_theta;
  j["rope_scaling"] = nullptr;
  j["rope_parameters"] = {{"rope_theta", c.rope_theta}, {"rope_type", "default"}};
  j["torch_dtype"] = "float32";
  j["dtype"] = "float32";
  // Others ignore these, and show a model one document at a time.
  if (c.document_end >= 0) j["smalltalk_document_end"] = c.document_end;
  if (c.document_mask) j["smalltalk_document_mask"] = true;
  if (c.merges_experts()) {
    j["architectures"] = {"LoryForCausalLM"};
    j["model_type"] = "lory";
    j["num_local_experts"] = c.merged_experts;
    j["segment_tokens"] = c.segment_tokens;
    j["merged_layers"] = c.merged_layers;
    j["segment_routing"] = to_string(c.routing);
    j["first_segment"] = to_string(c.first_segment);
  }
  return j.dump(2) + "\n";
}

ModelConfig read_model_config(const std::filesystem::path& path) {
  const json j = parse_json(read_text(path), path.string());
  if (!j.is_object()) throw Error("'" + path.string() + "' is not a JSON object");
  ModelConfig c;
  const auto type = required<std::string>(j, "model_type", path);
  const auto act = required<std::string>(j, "hidden_act", path);
  const bool lory = type == "lory";
  if ((lory || type == "llama") && act == "silu") {
    c.feed_forward = FeedForward::swiglu;
  } else if ((lory || type == "arcee") && act == "relu2") {
    c.feed_forward = FeedForward::relu2;
  } else {
    throw Error("'" + path.string() + "': model_type '" + printable(type) + "' with hidden_act '" +
                printable(act) + "' is not supported (llama with silu, arcee with relu2)");
  }
  if (lory) {
    c.merged_experts = required<int64_t>(j, "num_local_experts", path);
    c.segment_tokens = required<int64_t>(j, "segment_tokens", path);
    c.merged_layers = required<std::string>(j, "merged_layers", path);
    c.routing =
        one_of(j, "segment_routing", {SegmentRouting::previous, SegmentRouting::prefix}, path);
    c.first_segment = one_of(j, "first_segment", {FirstSegment::own, FirstSegment::uniform}, path);
  }
  refuse(j, "attention_bias", path);
  refuse(j, "mlp_bias", path);
  c.vocab_size = required<int64_t>(j, "vocab_size", path);
  c.hidden_size = required<int64_t>(j, "hidden_size", path);
  c.intermediate_size = required<int64_t>(j, "intermediate_size", path);
  c.num_layers = required<int64_t>(j, "num_hidden_layers", path);
  c.num_heads = required<int64_t>(j, "num_attention_heads", path);
  const bool grouped = j.contains("num_key_value_heads") && !j["num_key_value_heads"].is_null();
  c.num_kv_heads = grouped ? required<int64_t>(j, "num_key_value_heads", path) : c.num_heads;
  c.rms_norm_eps = required<double>(j, "rms_norm_eps", path);
  if (j.contains("initializer_range")) c.init_std = required<double>(j, "initializer_range", path);
  c.tie_embeddings =
      j.contains("tie_word_embeddings") && required<bool>(j, "tie_word_embeddings", path);
  c.rope_theta = read_rope_theta(j, path);
  if (j.contains("smalltalk_document_end"))
    c.document_end = required<int64_t>(j, "smalltalk_document_end", path);
  c.document_mask = c.document_end >= 0 && j.contains("smalltalk_document_mask") &&
                    required<bool>(j, "smalltalk_document_mask", path);
  if (c.num_heads >= 1 && j.contains("head_dim") && !j["head_dim"].is_null() &&
      (c.hidden_size % c.num_heads != 0 ||
       required<int64_t>(j, "head_dim", path) != c.hidden_size / c.num_heads)) {
    throw Error("'" + path.string() +
                "': head_dim other than hidden_size / heads is not supported");
  }
  return c;
}

}  // namespace smalltalk
