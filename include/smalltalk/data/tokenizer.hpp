// SentencePiece tokenizer, trained by the one recipe that gives the same ids here and in Hugging
// Face transformers: BPE, byte fallback, identity normalisation, no dummy prefix, digits split,
// <unk> 0, <s> 1, </s> 2, no padding.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/data/documents.hpp"

namespace smalltalk {

inline constexpr int64_t kEndToken = 2;

class Tokenizer {
 public:
  explicit Tokenizer(const std::filesystem::path& model);  // Error: missing or not a model
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  int64_t vocab_size() const;
  const std::string& hash() const;  // XXH3 of the model file
  std::vector<int32_t> encode(std::string_view text) const;
  std::string decode(const std::vector<int32_t>& ids) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether transformers can be made to give the same ids: the tokenizer is of the recipe, or as good
// as it. Error: missing or not a model.
bool can_be_exported(const std::filesystem::path& model);
// The texts of tokenizer.json and tokenizer_config.json, with which Hugging Face's transformers
// gives the same ids and needs no SentencePiece. Error: a tokenizer that cannot be exported.
std::string tokenizer_json(const std::filesystem::path& model);
std::string tokenizer_config_json(int64_t seq_length);

inline constexpr int64_t kLeastVocabSize = 3 + 256 + 1;  // <unk>, <s>, </s>, all bytes, one piece

// Trains a tokenizer on the first `sample_bytes` bytes' worth of documents, chosen evenly over the
// inputs, and writes the model. Deterministic. Stopped: this process was asked to stop; there is no
// model then. Error: too little text for the vocabulary.
void train_tokenizer(const std::vector<std::string>& inputs, int64_t vocab_size,
                     int64_t sample_bytes, const std::filesystem::path& model,
                     const DocumentFields& fields = {});

}  // namespace smalltalk
