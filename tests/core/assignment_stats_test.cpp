#include <gtest/gtest.h>

#include <algorithm>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/random.hpp"
#include "support/thread_ranks.hpp"

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

// Against plain sums.
TEST(AssignmentStats, ArePlainSumsForAnyRanksAndThreads) {
  constexpr int64_t n = 100'000, experts = 3;
  ScoreMatrix scores(n, experts);
  Assignment assignment;
  AssignmentStats expected{std::vector<int64_t>(experts), std::vector<int64_t>(experts), 0, 0, 0};
  for (int64_t i = 0; i < n; ++i) {
    const auto row = scores.row(i);
    for (size_t e = 0; e < row.size(); ++e) {
      row[e] = static_cast<float>(derive_seed(1, "score", static_cast<uint64_t>(i), e) % 1000) / -8;
    }
    const auto best = static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
    const size_t mine = derive_seed(2, "expert", static_cast<uint64_t>(i)) % experts;
    assignment.push_back(static_cast<uint16_t>(mine));
    ++expected.argmax_counts[best];
    ++expected.assigned_counts[mine];
    expected.displaced += mine != best;
    expected.mean_score += static_cast<double>(row[mine]) / n;
    expected.mean_best_score += static_cast<double>(row[best]) / n;
  }
  for (const int ranks : {1, 2}) {
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks of " + std::to_string(threads) + " threads");
      run_thread_ranks(ranks, [&](const HostCollectives& world) {
        const size_t first = static_cast<size_t>(n / ranks * world.rank);
        const size_t count = static_cast<size_t>(n / ranks);
        const LocalScores<float> mine{
            experts,
            {{first,
              std::span<const float>(scores.values()).subspan(first * experts, count * experts)}}};
        const AssignmentStats stats = assignment_stats(
            mine, std::span<const uint16_t>(assignment).subspan(first, count), threads, world);
        EXPECT_EQ(stats.argmax_counts, expected.argmax_counts);
        EXPECT_EQ(stats.assigned_counts, expected.assigned_counts);
        EXPECT_EQ(stats.displaced, expected.displaced);
        EXPECT_NEAR(stats.mean_score, expected.mean_score, 1e-9);
        EXPECT_NEAR(stats.mean_best_score, expected.mean_best_score, 1e-9);
      });
    }
  }
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
