// The two loops over rows of scores that an assignment consists of, compiled for several CPUs and
// picked at run time. Private to core. Score is float or uint16_t; E experts.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "core/assignment/row_pieces.hpp"
#include "smalltalk/core/assignment/balanced_assignment.hpp"

namespace smalltalk::rows {

// When an expert closes, in a walk: closed_after[e] is the number of closings before its own,
// kNever if it does not close, -1 if it has no room at all. A sequence that chooses after `time`
// closings may choose e if closed_after[e] >= time.
inline constexpr int32_t kNever = std::numeric_limits<int32_t>::max();

// ranks[i] <- OrderKey::rank of row i, best[i] <- its best expert. Returns the first row with a
// score that is not finite, or `count`.
int64_t rank_rows(const float* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best);
int64_t rank_rows(const uint16_t* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best);

// Throws the Error about a row that rank_rows() stopped at.
[[noreturn]] void refuse_row(const float* row, int64_t experts, uint64_t sequence);
[[noreturn]] void refuse_row(const uint16_t* row, int64_t experts, uint64_t sequence);

// rank_rows() of a piece. Error naming sequence and expert if a score is not finite.
template <typename Score>
std::vector<uint32_t> rank_piece(const RowPiece<Score>& piece, bool by_margin, uint16_t* best) {
  std::vector<uint32_t> ranks(static_cast<size_t>(piece.num_rows));
  const int64_t experts = static_cast<int64_t>(piece.values.size()) / piece.num_rows;
  const int64_t bad =
      rank_rows(piece.values.data(), piece.num_rows, experts, by_margin, ranks.data(), best);
  if (bad < piece.num_rows) {
    refuse_row(piece.values.data() + bad * experts, experts,
               piece.first_sequence + static_cast<uint64_t>(bad));
  }
  return ranks;
}

// choice[i] <- the best expert of row row_of[i] that is open after times[i] closings.
void choose_rows(const float* rows, std::span<const uint32_t> row_of, const int32_t* times,
                 std::span<const int32_t> closed_after, uint16_t* choice);
void choose_rows(const uint16_t* rows, std::span<const uint32_t> row_of, const int32_t* times,
                 std::span<const int32_t> closed_after, uint16_t* choice);

}  // namespace smalltalk::rows
