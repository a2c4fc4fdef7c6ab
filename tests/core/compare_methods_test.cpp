#include "smalltalk/core/assignment/compare_methods.hpp"

#include <gtest/gtest.h>

#include <map>

#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

// Sequences 10 to 13, two experts, worked out by hand. All but the last like expert 0 better.
// Greedy goes by the best score: 10 and 11 fill expert 0, and 12 pays 3 nats. Margin and optimal
// let 12 in and move 11, which pays 1.
const std::vector<float> kScores = {-1, -9, -2, -3, -3, -6, -8, -4};

MethodComparison compare(const HostCollectives& ranks) {
  const size_t rows = 4 / static_cast<size_t>(ranks.size);
  const size_t first = rows * static_cast<size_t>(ranks.rank);
  const LocalScores<float> scores{2,
                                  {{10 + first, std::span(kScores).subspan(2 * first, 2 * rows)}}};
  return compare_methods(scores, 10, std::vector<int64_t>{2, 2}, {}, ranks);
}

TEST(CompareMethods, IsWhatIsWorkedOutByHand) {
  for (const int size : {1, 2, 4}) {
    run_thread_ranks(size, [](const HostCollectives& ranks) {
      const MethodComparison comparison = compare(ranks);
      std::map<std::string, MethodResult> results;
      for (const MethodResult& method : comparison.methods) results[method.name] = method;
      ASSERT_EQ(results.size(), 6u);
      const auto expect = [&](const std::string& name, double regret, int64_t displaced,
                              int64_t differs) {
        EXPECT_DOUBLE_EQ(results[name].mean_regret(), regret) << name;
        EXPECT_EQ(results[name].stats.displaced, displaced) << name;
        EXPECT_EQ(results[name].differs, differs) << name;
      };
      expect("greedy", -3.0 / 4, 1, 0);
      expect("greedy on 16-bit codes", -3.0 / 4, 1, 0);
      expect("margin", -1.0 / 4, 1, 2);
      expect("optimal", -1.0 / 4, 1, 2);
      expect("argmax (not balanced)", 0, 0, 1);
      EXPECT_EQ(results["argmax (not balanced)"].stats.assigned_counts,
                (std::vector<int64_t>{3, 1}));
      EXPECT_EQ(results["random"].stats.assigned_counts, (std::vector<int64_t>{2, 2}));
      EXPECT_NEAR(comparison.bound, -1.0 / 4, 1e-3);
      EXPECT_GE(comparison.bound, -1.0 / 4);
    });
  }
}

}  // namespace
}  // namespace smalltalk
