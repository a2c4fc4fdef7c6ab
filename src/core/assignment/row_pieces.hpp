// The rows of a process in pieces, for loops that share them among threads. Private to core.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// Consecutive rows of one block.
template <typename Score>
struct RowPiece {
  std::span<const Score> values;  // [num_rows, E]
  int64_t num_rows;
  int64_t first_row;  // counted over all blocks of the process
  uint64_t first_sequence;
};

// All rows, in order, at most `rows` in a piece.
template <typename Score>
std::vector<RowPiece<Score>> row_pieces(const LocalScores<Score>& scores, int64_t rows) {
  std::vector<RowPiece<Score>> pieces;
  const int64_t experts = scores.num_experts;
  int64_t before = 0;
  for (const auto& block : scores.blocks) {
    const int64_t block_rows = static_cast<int64_t>(block.values.size()) / experts;
    for (int64_t row = 0; row < block_rows; row += rows) {
      const int64_t count = std::min(rows, block_rows - row);
      pieces.push_back({block.values.subspan(static_cast<size_t>(row * experts),
                                             static_cast<size_t>(count * experts)),
                        count, before + row, block.first_sequence + static_cast<uint64_t>(row)});
    }
    before += block_rows;
  }
  return pieces;
}

// The sequences of all ranks. Error if there is not one capacity, and none below 0, for each
// expert, or if they do not sum to the sequences. Collective.
int64_t require_capacities(std::span<const int64_t> capacities, int64_t num_experts,
                           int64_t local_rows, const HostCollectives& ranks);

}  // namespace smalltalk
