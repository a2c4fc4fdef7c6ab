// Remembers the tokens of words, which makes encoding several times faster: text is mostly words
// that were seen before. A word is a run of spaces and what follows it up to the next space. That
// cutting there changes nothing is a property of the model and is checked, not assumed: no piece
// may go on behind a space that follows something else, and normalisation must be the identity.
// Private to src/data.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace smalltalk {

class WordCache {
 public:
  using Encode = std::function<void(std::string_view, std::vector<int32_t>&)>;

  static bool is_exact_for(const sentencepiece::SentencePieceProcessor& processor);

  explicit WordCache(Encode encode) : encode_(std::move(encode)) {}

  // Encodes by words; false (nothing done) if another thread holds the cache, or if the text has a
  // character that stands for a space inside SentencePiece.
  bool encode(std::string_view text, std::vector<int32_t>& ids);

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  struct Tokens {
    uint32_t first = 0;
    uint32_t count = 0;
  };

  void append_word(std::string_view word, std::vector<int32_t>& ids);

  Encode encode_;
  std::mutex mutex_;
  std::unordered_map<std::string, Tokens, Hash, std::equal_to<>> words_;
  std::vector<int32_t> tokens_;  // of all words, end to end
  std::vector<int32_t> scratch_;
};

}  // namespace smalltalk
