#include "lm/model/check_tokens.hpp"

#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

void check_tokens(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                  int64_t vocab_size, int64_t first_row) {
  if (row_tokens < 1 || rows < 0 || static_cast<int64_t>(tokens.size()) != rows * row_tokens) {
    throw Error("expected " + std::to_string(rows) + " rows of " + std::to_string(row_tokens) +
                " tokens, got " + std::to_string(tokens.size()) + " tokens");
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    throw Error("token " + std::to_string(tokens[i]) + " in row " +
                std::to_string(first_row + static_cast<int64_t>(i) / row_tokens) +
                " is outside the vocabulary of " + std::to_string(vocab_size) +
                ": were these tokens made with another tokenizer?");
  }
}

}  // namespace smalltalk
