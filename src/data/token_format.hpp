// Names inside a token file. Private to src/data.
#pragma once

#include <cstdint>

namespace smalltalk {

inline constexpr const char* kTokenFormat = "smalltalk tokens";
inline constexpr const char* kTokens = "tokens";
inline constexpr const char* kDocumentEnds = "document_ends";
inline constexpr const char* kDocumentDomains = "document_domains";
inline constexpr int64_t kMaxVocabOfTwoBytes = 65536;

inline constexpr int64_t token_bytes_for(int64_t vocab_size) {
  return vocab_size <= kMaxVocabOfTwoBytes ? 2 : 4;
}

}  // namespace smalltalk
