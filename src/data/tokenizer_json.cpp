// The tokenizer as Hugging Face's `tokenizers` reads it. SentencePiece's BPE joins, of all
// neighbours, those whose joint piece has the best score; scores fall with the id. Here that is a
// list of merges: each piece, in the order of ids, with every way to split it into two others.
#include <sentencepiece_processor.h>

#include <nlohmann/json.hpp>
#include <unordered_set>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/utf8.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "word_cache.hpp"

namespace smalltalk {
namespace {

using Json = nlohmann::ordered_json;
using Processor = sentencepiece::SentencePieceProcessor;

constexpr const char* kSpace = "\xE2\x96\x81";  // U+2581, SentencePiece's sign for a space

Json special_token(const Processor& processor, int id) {
  return {{"id", id},
          {"content", processor.IdToPiece(id)},
          {"single_word", false},
          {"lstrip", false},
          {"rstrip", false},
          {"normalized", false},
          {"special", true}};
}

void load(Processor& processor, const std::filesystem::path& model) {
  if (!processor.LoadFromSerializedProto(read_text(model)).ok()) {
    throw Error(model.string() + ": not a SentencePiece model");
  }
}

bool is_text(const Processor& processor, int id) {
  return !processor.IsControl(id) && !processor.IsUnknown(id) && !processor.IsByte(id);
}

bool is_repeatable(const Processor& processor) {
  int64_t place = 0;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    // Scores of BPE are places in the list of merges.
    if (!is_text(processor, id)) continue;
    if (processor.GetScore(id) != -static_cast<float>(place++)) return false;
  }
  return WordCache::is_exact_for(processor);
}

}  // namespace

bool can_be_exported(const std::filesystem::path& model) {
  Processor processor;
  load(processor, model);
  return is_repeatable(processor);
}

std::string tokenizer_json(const std::filesystem::path& model) {
  Processor processor;
  load(processor, model);
  Json vocabulary = Json::object(), specials = Json::array(), merges = Json::array();
  std::vector<std::string> pieces;  // made of text
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    vocabulary[processor.IdToPiece(id)] = id;
    if (processor.IsControl(id) || processor.IsUnknown(id)) {
      specials.push_back(special_token(processor, id));
    } else if (is_text(processor, id)) {
      pieces.push_back(processor.IdToPiece(id));
    }
  }
  if (!is_repeatable(processor)) {
    throw Error(model.string() +
                ": not a tokenizer whose ids transformers can repeat (BPE with byte fallback, "
                "identity normalisation and no dummy prefix, as prepare trains it)");
  }
  const std::unordered_set<std::string> known(pieces.begin(), pieces.end());
  for (const std::string& piece : pieces) {
    for (size_t at = 1; at < piece.size(); ++at) {
      if (continues_character(piece[at])) continue;
      const std::string left = piece.substr(0, at), right = piece.substr(at);
      if (known.contains(left) && known.contains(right)) merges.push_back({left, right});
    }
  }
  const Json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", specials},
      {"normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}}},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         Json::array(
             {Json{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
              Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}}})}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", processor.IdToPiece(processor.unk_id())},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"ignore_merges", false},
        {"vocab", vocabulary},
        {"merges", merges}}}};
  return tokenizer.dump(1) + "\n";
}

std::string tokenizer_config_json(int64_t seq_length) {
  // A text begins after the end of another: that is what a model has seen before first tokens. What
  // looks like a special token in a text is text.
  const Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                       {"bos_token", "</s>"},
                       {"eos_token", "</s>"},
                       {"unk_token", "<unk>"},
                       {"model_input_names", {"input_ids", "attention_mask"}},
                       {"add_bos_token", true},
                       {"add_eos_token", false},
                       {"add_prefix_space", false},
                       {"clean_up_tokenization_spaces", false},
                       {"split_special_tokens", true},
                       {"model_max_length", seq_length}};
  return config.dump(2) + "\n";
}

}  // namespace smalltalk
