// The scores [n, E] of a chunk change hands: a rank finds them by columns, those of its routers,
// and assigns them by rows, those of its slice of the sequences. Nobody ever holds all of them.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// Which scores of a chunk a rank computes: those of some routers, on part `part` of `parts`.
struct ScoringShare {
  std::vector<int> routers;
  int part = 0;
  int parts = 1;

  // Its rows of n: [first, last).
  std::pair<int64_t, int64_t> rows(int64_t n) const;
};

// A rank's slice of a chunk: all routers' scores, in 16 bits, of some of the n sequences. The
// slices of all ranks follow each other in rank order.
struct ScoreSlice {
  std::vector<uint16_t> codes;   // [rows, E]
  LocalScores<uint16_t> scores;  // over `codes`; ids are positions in the chunk
};

// Columns to slices, by one all-to-all of 2 bytes a score. `mine`: for each router of this rank's
// share, the scores of the share's rows. Collective.
ScoreSlice exchange_scores(int64_t n, int64_t num_experts, std::span<const ScoringShare> shares,
                           std::span<const float> mine, const HostCollectives& world);

}  // namespace smalltalk
