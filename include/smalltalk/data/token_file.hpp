// tokens.h5: the documents of one split, tokenised, each followed by the end token, laid end to
// end. Format (version 2; all of it with checksums, see data/README.md):
//   /tokens           uint16 (V <= 65536) or uint32 [num_tokens], contiguous: can be memory-mapped
//   /document_ends    uint64 [num_documents], one past the last token (the end token) of each
//   /document_domains uint16 [num_documents], index into /domains (0: unknown)
//   /domains          text [num_domains]
//   attributes: format, version, vocab_size, end_token, tokenizer_hash, content_hash, ...
// Sequence i of length S is tokens [i S, i S + S], S + 1 of them: the last is only a target.
// Of a file that was packed for sequences of S tokens, token 0 is an end token and document 0
// follows; documents stand in another order than in the text, and behind some of them are further
// end tokens until the next sequence begins, which count as part of the document.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

struct DocumentOrder;

struct TokenFileInfo {
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t vocab_size = 0;
  int64_t token_bytes = 2;
  int64_t end_token = 2;
  std::string tokenizer_hash;
  std::string content_hash;  // XXH3 of the token bytes; in an order, of that and the order's hash
  std::string order_hash;    // content_hash of the order of its documents; empty: as they lie
  int64_t text_bytes = 0;    // UTF-8 bytes of the documents, for bits per byte
  int64_t padding = 0;       // end tokens between documents, which are no targets
  int64_t packed_length =
      0;  // S of the sequences that documents were packed into; 0: they were not
};

// Read-only memory map; any number of threads may read. Opening reads no tokens: each MiB is
// verified when it is first touched, and a damaged one is an Error that names its place.
class TokenFile {
 public:
  // Errors: missing, not a token file, another version, truncated.
  explicit TokenFile(const std::filesystem::path& path);
  // Its documents in this order, of whose tokens all places, sequences and document ends are then.
  // Holds 16 bytes a document. Error: the order is of other tokens, or these are packed.
  TokenFile(const std::filesystem::path& path, const DocumentOrder& order);
  ~TokenFile();
  TokenFile(TokenFile&&) noexcept;

  const TokenFileInfo& info() const;
  const std::filesystem::path& path() const;
  bool is_reordered() const;
  int64_t num_sequences(int64_t seq_length) const;  // (num_tokens - 1) / S
  // Copies tokens [first, first + out.size()). REQUIRES them to exist (else Error).
  void read(int64_t first, std::span<int64_t> out) const;
  std::vector<uint64_t> document_ends() const;
  // XXH3 of the bytes of the first `num_tokens` tokens, as content_hash is of all: equal to another
  // file's content_hash if this one is that one with more behind it. Reads them all. REQUIRES them
  // to exist (else Error) and to lie as in the file.
  std::string hash_of_first(int64_t num_tokens) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether the file begins with the `num_tokens` tokens that have this content hash. Text that was
// put into another order can only be the same.
bool extends(const TokenFile& tokens, const std::string& content_hash,
             const std::string& num_tokens);

// The documents' domain labels. For reporting only: nothing that trains or routes may call this
// (ci/check_layers.py holds that).
struct Domains {
  std::vector<std::string> names;       // names[0] is "unknown"
  std::vector<uint16_t> of_document;    // [num_documents]
  std::vector<uint64_t> document_ends;  // [num_documents]
};
Domains read_domains(const std::filesystem::path& path);
// The domain that holds most tokens of each sequence, ties by index. [num_sequences]
std::vector<uint16_t> sequence_domains(const Domains& domains, int64_t num_sequences,
                                       int64_t seq_length);

}  // namespace smalltalk
