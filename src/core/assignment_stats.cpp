#include <string>

#include "smalltalk/core/balanced_assignment.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {

AssignmentStats assignment_stats(const ScoreMatrix& scores, std::span<const uint16_t> assignment) {
  const auto num_experts = static_cast<size_t>(scores.num_experts());
  if (static_cast<int64_t>(assignment.size()) != scores.num_sequences()) {
    throw Error("an assignment of " + std::to_string(assignment.size()) +
                " sequences does not belong to scores of " +
                std::to_string(scores.num_sequences()) + " sequences");
  }
  const Assignment best = argmax_assignment(scores);
  AssignmentStats stats;
  stats.argmax_counts.assign(num_experts, 0);
  stats.assigned_counts.assign(num_experts, 0);
  for (size_t sequence = 0; sequence < assignment.size(); ++sequence) {
    const auto row = scores.row(static_cast<int64_t>(sequence));
    const size_t expert = assignment[sequence];
    if (expert >= num_experts) {
      throw Error("sequence " + std::to_string(sequence) + " is assigned to expert " +
                  std::to_string(expert) + ", but there are only " + std::to_string(num_experts));
    }
    ++stats.argmax_counts[best[sequence]];
    ++stats.assigned_counts[expert];
    if (expert != best[sequence]) ++stats.displaced;
    stats.mean_score += row[expert];
    stats.mean_best_score += row[best[sequence]];
  }
  if (!assignment.empty()) {
    stats.mean_score /= static_cast<double>(assignment.size());
    stats.mean_best_score /= static_cast<double>(assignment.size());
  }
  return stats;
}

}  // namespace smalltalk
