// An assignment by any method, with what proves it: the one entry for the EM, the shards and the
// job `assign`.
#pragma once

#include <cstdint>
#include <span>

#include "smalltalk/core/assignment/balanced_assignment.hpp"

namespace smalltalk {

struct AssignOptions {
  AssignmentMethod method = AssignmentMethod::greedy;  // not random
  double epsilon = 1e-3;  // of optimal: nats per sequence that it may miss the optimum by
  bool certify = true;    // also for greedy and margin: bound how far they are from the optimum
  int threads = 1;
};

struct AssignmentOutcome {
  Assignment expert;  // of the local rows, in the order of the blocks
  AssignmentStats stats;
  AssignmentRule rule;
  SelectionTraffic traffic;  // greedy and margin
  double mean_regret = 0;    // assigned minus best score, nats per sequence, <= 0
  // No assignment with these capacities has a larger mean regret. 0, which is always true, if it
  // was not certified or there are too many experts to (kMaxOptimalExperts).
  double bound = 0;
};

// Collective, with the REQUIREs of balanced_rule() and optimal_assignment(). Argmax does without
// the capacities. Throws Stopped, on all ranks, if any of them was asked to stop.
template <typename Score>
AssignmentOutcome assign_sequences(const LocalScores<Score>& scores,
                                   std::span<const int64_t> capacities,
                                   const AssignOptions& options, const HostCollectives& ranks = {});

}  // namespace smalltalk
