#pragma once

#include <cstdint>
#include <span>

namespace smalltalk {

// Error naming the row, of which the first is `first_row`, if an id is outside [0, V) or the sizes
// do not fit.
void check_tokens(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                  int64_t vocab_size, int64_t first_row = 0);

}  // namespace smalltalk
