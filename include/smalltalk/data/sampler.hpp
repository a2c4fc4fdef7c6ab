// The order of training: row n of a shard is its sequence perm_epoch(n mod size), where each epoch
// has a keyed permutation of its own. Nothing is stored; any row can be asked for at any time.
#pragma once

#include <memory>
#include <vector>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/data/token_file.hpp"

namespace smalltalk {

// Rows of `row_tokens` tokens from the start of each sequence. `sequences` empty: all of the file.
// row_tokens is S + 1 for an expert, M for a router. REQUIRES row_tokens <= S + 1.
RowSource shuffled_rows(std::shared_ptr<const TokenFile> tokens, std::vector<uint64_t> sequences,
                        int64_t seq_length, int64_t row_tokens, uint64_t seed);

// The same rows in the order given (scoring, evaluation, one pass of a router over its share).
RowSource ordered_rows(std::shared_ptr<const TokenFile> tokens, std::vector<uint64_t> sequences,
                       int64_t seq_length, int64_t row_tokens);

// Row `first` of the result is row 0 of `rows`: for a training that has taken `first` rows before.
RowSource numbered_from(int64_t first, RowSource rows);

}  // namespace smalltalk
