// Writes tokens.h5 piece by piece; memory does not grow with the corpus. Used by prepare, and by
// whatever else has tokens to bring in. Wrap it in write_atomically().
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/data/token_file.hpp"

namespace smalltalk {

class TokenWriter {
 public:
  // `info`: num_tokens, num_documents, vocab_size, tokenizer_hash and text_bytes must be known
  // beforehand; the rest is filled in. Errors name `shown`, the file's final place.
  TokenWriter(const std::filesystem::path& path, const std::filesystem::path& shown,
              const TokenFileInfo& info, const std::vector<std::string>& domain_names);
  ~TokenWriter();

  // Tokens with their end tokens, in order. Error: a token outside of the vocabulary.
  void add_tokens(std::span<const uint32_t> tokens);
  void add_tokens(std::span<const uint16_t> tokens);
  // Ends count from the start of the file. The spans are of equal size.
  void add_documents(std::span<const uint64_t> ends, std::span<const uint16_t> domains);

  // Further attributes (texts of at most 2048 bytes), and lists as datasets.
  void add_text(const std::string& name, const std::string& value);
  void add_integer(const std::string& name, int64_t value);
  void add_list(const std::string& name, const std::vector<std::string>& values);

  // REQUIRES as many tokens and documents as announced. Writes the content hash and closes.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
