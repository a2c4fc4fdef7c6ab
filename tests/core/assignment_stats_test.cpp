#include <gtest/gtest.h>

#include <algorithm>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

TEST(AssignmentStats, WorkedExample) {
  ScoreMatrix scores(4, 2);
  const std::vector<float> values = {-2, -5, -4, -9, -1, -7, -8, -3};
  std::copy(values.begin(), values.end(), scores.values().begin());
  const AssignmentStats stats = assignment_stats(local_scores(scores), balanced_assignment(scores));
  // Sequence 1, the third to prefer expert 0, is given to expert 1.
  EXPECT_EQ(stats.argmax_counts, (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(stats.assigned_counts, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(stats.displaced, 1);
  EXPECT_DOUBLE_EQ(stats.mean_score, (-2 - 9 - 1 - 3) / 4.0);
  EXPECT_DOUBLE_EQ(stats.mean_best_score, (-2 - 4 - 1 - 3) / 4.0);
}

TEST(AssignmentStats, OfNothing) {
  const ScoreMatrix none(0, 2);
  const AssignmentStats stats = assignment_stats(local_scores(none), {});
  EXPECT_EQ(stats.assigned_counts, (std::vector<int64_t>{0, 0}));
  EXPECT_EQ(stats.mean_score, 0);
}

TEST(AssignmentStats, RefusesAnAssignmentOfOtherScores) {
  const ScoreMatrix scores(2, 2);
  EXPECT_THROW(assignment_stats(local_scores(scores), Assignment{0}), Error);
  EXPECT_THROW(assignment_stats(local_scores(scores), Assignment{0, 2}), Error);
}

}  // namespace
}  // namespace smalltalk
