// Where a training loop gets its tokens: a function of the index alone, so that any rank can ask
// for any rows of any step, and a resumed run asks for what the unbroken run would have asked.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

namespace smalltalk {

// Fills `tokens` [count, row_tokens] with training rows first .. first + count - 1 in the order of
// training: step t of a batch of B sequences consumes rows t * B .. t * B + B - 1. An expert's row
// is a sequence with its last target, S + 1 tokens; a router's row is a prefix, M tokens.
struct RowSource {
  int64_t row_tokens = 0;
  // Called by one thread at a time, not always the same.
  std::function<void(int64_t first, int64_t count, std::span<int64_t> tokens)> read;
  // The sequence of the token file that a row comes from, for messages; may be empty.
  std::function<uint64_t(int64_t row)> sequence_of = {};
};

}  // namespace smalltalk
