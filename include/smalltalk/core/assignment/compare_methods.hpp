// What each method makes of the same scores, and what it costs to know the scores in 16 bits only:
// for choosing a method, not for assigning.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/assign_sequences.hpp"

namespace smalltalk {

struct MethodResult {
  std::string name;
  AssignmentStats stats;
  int64_t differs = 0;  // sequences that greedy on these scores gives to another expert

  double mean_regret() const { return stats.mean_score - stats.mean_best_score; }
};

struct MethodComparison {
  // greedy, margin, optimal, argmax, random, and greedy on 16-bit codes.
  std::vector<MethodResult> methods;
  double bound = 0;  // no balanced assignment has a larger mean regret; nats per sequence, <= 0
};

// The sequences of all ranks are first_sequence, first_sequence + 1, ..., as many as the capacities
// [E] sum to. Of `options` the method does not count. Collective, with the REQUIREs of
// assign_sequences().
MethodComparison compare_methods(const LocalScores<float>& scores, uint64_t first_sequence,
                                 std::span<const int64_t> capacities, AssignOptions options,
                                 const HostCollectives& ranks = {});

}  // namespace smalltalk
