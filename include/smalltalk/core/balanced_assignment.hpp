// Which expert takes which sequence. Training is balanced (SmallTalk LM, section 2.2): order all
// sequences by their best score over all experts, highest first, ties by sequence; go through that
// order; each takes its best expert that still has room, ties by expert. Capacities are N / E, the
// first N mod E experts one more. The result depends on the scores alone, never on ranks, threads
// or blocks. Inference has no capacity: the best score wins.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "smalltalk/core/score_matrix.hpp"

namespace smalltalk {

using Assignment = std::vector<uint16_t>;  // [N], the expert of each sequence

// Capacity of each expert, [E]; they sum to N.
std::vector<int64_t> balanced_capacities(int64_t num_sequences, int64_t num_experts);

// REQUIRES all scores finite and E <= N <= 2^32 (else Error naming the sequence and expert).
// -0 counts as +0. Cost: O(N log N + N E) time, O(N) memory beside the scores.
Assignment balanced_assignment(const ScoreMatrix& scores);

// The best expert of each sequence, ties by expert. REQUIRES all scores finite (else Error).
Assignment argmax_assignment(const ScoreMatrix& scores);

// A balanced assignment that knows nothing: sequences dealt out in a random order, a function of
// the seed alone. The start of the EM and the random-shards control.
Assignment random_assignment(int64_t num_sequences, int64_t num_experts, uint64_t seed);

// What an assignment did to a chunk of sequences.
struct AssignmentStats {
  std::vector<int64_t> argmax_counts;    // [E] sequences whose best expert this is
  std::vector<int64_t> assigned_counts;  // [E] sequences that were given to it
  int64_t displaced = 0;                 // sequences not given to their best expert
  double mean_score = 0;                 // of the assigned expert, nats per sequence
  double mean_best_score = 0;            // of the best expert, nats per sequence
};
AssignmentStats assignment_stats(const ScoreMatrix& scores, std::span<const uint16_t> assignment);

}  // namespace smalltalk
