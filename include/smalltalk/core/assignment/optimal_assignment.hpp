// The assignment with the largest total score, and how good any assignment is. For any prices p of
// the experts, no assignment with capacities c has a larger total score than
//   D(p) = sum_i max_e (s_ie - p_e) + sum_e c_e p_e
// (weak duality of the transportation problem; prices are those of an auction, Bertsekas, "Linear
// Network Optimization", 1991). Good prices come from samples of the sequences, each 16 times as
// large as the one before, the first solved exactly by successive shortest paths; from there on
// only sequences close to indifferent between two experts are looked at.
//
// All is told as regret, a sequence's score minus its best score, in nats: totals are huge, and
// most of them cancels. Regrets count in steps of 2^-24 nats, and those below -2^20 nats as -2^20:
// sums of integers, so that nothing depends on ranks, threads or blocks. Where sequences tie, a
// hash of the sequence and expert decides: each score is moved by up to an eighth of epsilon for
// the search, never for what is reported.
//
// REQUIRES of all functions (else Error): scores finite; 1 to 4096 experts; capacities [E] not
// negative, with the sum N over all ranks; a step that is not negative. Collective: all ranks call
// with the same arguments but their own rows, each of the N sequences on one rank.
// Memory beside the scores, on every rank: some percent of ALL scores (those close to
// indifferent), and 64 E^2 bytes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

inline constexpr int64_t kMaxOptimalExperts = 4096;

struct DualBound {
  std::vector<double> prices;  // [E], nats
  double mean_regret = 0;      // no assignment's mean regret is larger; <= 0, nats per sequence
};

// A bound from the prices that are best for about a million sequences: for fewer, within 2 10^-4
// nats of the optimum. One pass over the scores.
template <typename Score>
DualBound dual_bound(const LocalScores<Score>& scores, std::span<const int64_t> capacities,
                     int threads, const HostCollectives& ranks);

struct OptimalAssignment {
  Assignment expert;           // of the local rows, in the order of the blocks
  std::vector<double> prices;  // [E], nats; those of the bound
  double mean_regret = 0;      // of this assignment, all ranks, nats per sequence
  double bound = 0;            // no assignment's mean regret is larger
};

// bound - mean_regret <= epsilon (nats per sequence). REQUIRES epsilon >= 1e-6. Error if the search
// does not get there. About three passes over the scores.
template <typename Score>
OptimalAssignment optimal_assignment(const LocalScores<Score>& scores,
                                     std::span<const int64_t> capacities, double epsilon,
                                     int threads, const HostCollectives& ranks);

}  // namespace smalltalk
