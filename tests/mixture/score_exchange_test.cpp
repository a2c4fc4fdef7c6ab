// Scores change hands between threads that stand for ranks.
#include "smalltalk/mixture/routing/score_exchange.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

// Ranks that share routers and parts in every way: each row must arrive whole at the rank that
// assigns it, with the code nearest to its score.
TEST(ExchangeScores, BringsColumnsToRows) {
  const std::vector<std::vector<ScoringShare>> layouts = {
      {{{0, 1, 2}, 0, 1}},                                   // one rank
      {{{0, 2}, 0, 1}, {{1}, 0, 1}},                         // fewer ranks than routers
      {{{0}, 0, 1}, {{1}, 0, 2}, {{1}, 1, 2}, {{2}, 0, 1}},  // more
  };
  const auto score = [](int64_t row, int e) {
    return static_cast<float>(-100 + 10 * std::sin(static_cast<double>(7 * row + 3 * e)));
  };
  for (const auto& layout : layouts) {
    for (const int64_t n : {0, 1, 130, 1000}) {
      std::vector<Assignment> joined(layout.size());
      run_thread_ranks(static_cast<int>(layout.size()), [&](const HostCollectives& world) {
        const ScoringShare& share = layout[static_cast<size_t>(world.rank)];
        const auto [first, last] = share.rows(n);
        std::vector<float> mine;
        for (const int e : share.routers) {
          for (int64_t row = first; row < last; ++row) mine.push_back(score(row, e));
        }
        const ScoreSlice slice = exchange_scores(n, 3, layout, mine, world);
        const ScoreBlock<uint16_t>& rows = slice.scores.blocks[0];
        const LocalScores<uint16_t>& scores = slice.scores;
        for (int64_t i = 0; i < scores.num_rows(); ++i) {
          for (int e = 0; e < 3; ++e) {
            const double code = rows.values[static_cast<size_t>(3 * i + e)];
            ASSERT_NEAR(scores.lowest + scores.step * code,
                        score(static_cast<int64_t>(rows.first_sequence) + i, e), 20.0 / 65535);
          }
        }
        joined[static_cast<size_t>(world.rank)] =
            gather_values<uint16_t>(argmax_assignment(scores), world);
      });
      for (const Assignment& one : joined) {
        ASSERT_EQ(static_cast<int64_t>(one.size()), n);
        EXPECT_EQ(one, joined[0]);
      }
    }
  }
}

}  // namespace
}  // namespace smalltalk
