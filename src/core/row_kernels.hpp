// The three loops over rows of scores that an assignment consists of, compiled for several CPUs and
// picked at run time. Private to core. Score is float or uint16_t; E experts.
#pragma once

#include <cstdint>
#include <span>

#include "smalltalk/core/balanced_assignment.hpp"

namespace smalltalk::rows {

// Which experts a sequence may choose from: those with closed_after[e] >= time. In a walk, time is
// the number of closings before the sequence; closed_after[e] is the index of e's closing,
// INT32_MAX if it never closes, -1 if it has no room at all.
struct OpenExperts {
  std::span<const int32_t> closed_after;  // [E]
  int32_t time = 0;
};

// ranks[i] <- OrderKey::rank of row i, best[i] <- its best expert. Returns the first row with a
// score that is not finite, or `count`.
int64_t rank_rows(const float* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best);
int64_t rank_rows(const uint16_t* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best);

// Throws the Error about a row that rank_rows() stopped at.
[[noreturn]] void refuse_row(const float* row, int64_t experts, uint64_t sequence);
[[noreturn]] void refuse_row(const uint16_t* row, int64_t experts, uint64_t sequence);

// choice[i] <- best open expert of the row that order[i] names in its low 32 bits.
void choose_rows(const float* rows, const uint64_t* order, int64_t count, const OpenExperts& open,
                 uint16_t* choice);
void choose_rows(const uint16_t* rows, const uint64_t* order, int64_t count,
                 const OpenExperts& open, uint16_t* choice);

// choice[i] <- best expert of row i at the time times[i].
void choose_rows_at(const float* rows, int64_t count, std::span<const int32_t> closed_after,
                    const int32_t* times, uint16_t* choice);
void choose_rows_at(const uint16_t* rows, int64_t count, std::span<const int32_t> closed_after,
                    const int32_t* times, uint16_t* choice);

}  // namespace smalltalk::rows
