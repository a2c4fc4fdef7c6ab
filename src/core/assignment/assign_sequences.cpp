#include "smalltalk/core/assignment/assign_sequences.hpp"

#include "smalltalk/core/assignment/optimal_assignment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {

template <typename Score>
AssignmentOutcome assign_sequences(const LocalScores<Score>& scores,
                                   std::span<const int64_t> capacities,
                                   const AssignOptions& options, const HostCollectives& ranks) {
  AssignmentOutcome outcome;
  if (options.method == AssignmentMethod::optimal) {
    OptimalAssignment best =
        optimal_assignment(scores, capacities, options.epsilon, options.threads, ranks);
    outcome.expert = std::move(best.expert);
    outcome.rule.prices = std::move(best.prices);
    outcome.bound = best.bound;
    outcome.rule.method = options.method;
    outcome.rule.capacities.assign(capacities.begin(), capacities.end());
    outcome.stats = assignment_stats(scores, outcome.expert, options.threads, ranks);
  } else if (options.method == AssignmentMethod::argmax) {
    outcome.expert = argmax_assignment(scores, options.threads);
    outcome.stats = assignment_stats(scores, outcome.expert, options.threads, ranks);
    outcome.rule = {options.method, outcome.stats.assigned_counts, {}, {}};
  } else {
    outcome.rule =
        balanced_rule(scores, capacities, options.method, options.threads, ranks, &outcome.traffic);
    Assigned assigned = apply_rule(scores, outcome.rule, options.threads, ranks);
    outcome.expert = std::move(assigned.expert);
    outcome.stats = std::move(assigned.stats);
    run_together(ranks, stop_if_asked);
    if (options.certify && scores.num_experts <= kMaxOptimalExperts) {
      outcome.bound = dual_bound(scores, capacities, options.threads, ranks).mean_regret;
    }
  }
  outcome.mean_regret = outcome.stats.mean_score - outcome.stats.mean_best_score;
  return outcome;
}

template AssignmentOutcome assign_sequences(const LocalScores<float>&, std::span<const int64_t>,
                                            const AssignOptions&, const HostCollectives&);
template AssignmentOutcome assign_sequences(const LocalScores<uint16_t>&, std::span<const int64_t>,
                                            const AssignOptions&, const HostCollectives&);

}  // namespace smalltalk
