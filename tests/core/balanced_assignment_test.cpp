#include "smalltalk/core/assignment/balanced_assignment.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

ScoreMatrix make_scores(int64_t num_experts, const std::vector<float>& values) {
  ScoreMatrix scores(static_cast<int64_t>(values.size()) / num_experts, num_experts);
  std::copy(values.begin(), values.end(), scores.values().begin());
  return scores;
}

// The sequences in the order in which they choose, found by looking for the next one each time.
std::vector<size_t> choosing_order(const ScoreMatrix& scores) {
  std::vector<size_t> waiting(static_cast<size_t>(scores.num_sequences()));
  std::iota(waiting.begin(), waiting.end(), size_t{0});
  const auto best = [&](size_t sequence) {
    const auto row = scores.row(static_cast<int64_t>(sequence));
    return *std::max_element(row.begin(), row.end());
  };
  std::vector<size_t> order;
  while (!waiting.empty()) {
    const auto next = std::max_element(waiting.begin(), waiting.end(),
                                       [&](size_t a, size_t b) { return best(a) < best(b); });
    order.push_back(*next);
    waiting.erase(next);  // keeps the others ascending, so the first of equals is the lowest
  }
  return order;
}

// Experts of a sequence from best to worst.
std::vector<size_t> ranked_experts(std::span<const float> row) {
  std::vector<size_t> experts(row.size());
  std::iota(experts.begin(), experts.end(), size_t{0});
  std::stable_sort(experts.begin(), experts.end(),
                   [&](size_t a, size_t b) { return row[a] > row[b]; });
  return experts;
}

// The definition, with lists of choices in place of keys, a sort and a table of room.
Assignment brute_force(const ScoreMatrix& scores) {
  const auto n = static_cast<size_t>(scores.num_sequences());
  const auto e = static_cast<size_t>(scores.num_experts());
  std::vector<std::vector<size_t>> members(e);
  for (const size_t sequence : choosing_order(scores)) {
    for (const size_t expert : ranked_experts(scores.row(static_cast<int64_t>(sequence)))) {
      const size_t capacity = (n + e - 1 - expert) / e;
      if (members[expert].size() < capacity) {
        members[expert].push_back(sequence);
        break;
      }
    }
  }
  Assignment assignment(n, std::numeric_limits<uint16_t>::max());
  for (size_t expert = 0; expert < e; ++expert) {
    for (const size_t sequence : members[expert]) {
      assignment[sequence] = static_cast<uint16_t>(expert);
    }
  }
  return assignment;
}

std::vector<int64_t> counts_of(const Assignment& assignment, int64_t num_experts) {
  std::vector<int64_t> counts(static_cast<size_t>(num_experts));
  for (const uint16_t expert : assignment) ++counts.at(expert);
  return counts;
}

// Random scores; few levels make ties, of sequences and of experts.
ScoreMatrix random_scores(std::mt19937_64& random, int64_t n, int64_t e, int levels) {
  ScoreMatrix scores(n, e);
  for (float& value : scores.values()) {
    const auto level = static_cast<float>(random() % static_cast<uint64_t>(levels));
    value = -level / 4;
    if (value == 0 && random() % 2 == 0) value = -value;  // both zeros
  }
  return scores;
}

TEST(BalancedAssignment, WorkedExample) {
  // Order of choice by best score: 2 (-1), 0 (-2), 3 (-3), 1 (-4). Expert 0 is full after 2 and 0,
  // so 3 and 1 go to expert 1 although both prefer expert 0.
  const ScoreMatrix scores = make_scores(2, {-2, -5,  //
                                             -4, -9,  //
                                             -1, -7,  //
                                             -3, -8});
  EXPECT_EQ(balanced_assignment(scores), (Assignment{0, 1, 0, 1}));
  EXPECT_EQ(argmax_assignment(scores), (Assignment{0, 0, 0, 0}));
}

TEST(BalancedAssignment, TiesGoToTheLowerSequenceAndExpert) {
  EXPECT_EQ(balanced_assignment(ScoreMatrix(5, 2)), (Assignment{0, 0, 0, 1, 1}));
  EXPECT_EQ(argmax_assignment(ScoreMatrix(3, 2)), (Assignment{0, 0, 0}));
}

TEST(BalancedAssignment, MinusZeroIsZero) {
  const ScoreMatrix scores = make_scores(2, {-0.0F, 0.0F,   //
                                             0.0F, -0.0F,   //
                                             -0.0F, -0.0F,  //
                                             0.0F, 0.0F});
  EXPECT_EQ(balanced_assignment(scores), balanced_assignment(ScoreMatrix(4, 2)));
  EXPECT_EQ(argmax_assignment(scores), (Assignment{0, 0, 0, 0}));
}

TEST(BalancedAssignment, OrdersScoresOfBothSignsAndAllSizes) {
  constexpr float kMost = std::numeric_limits<float>::max();
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  // One place at expert 0, the favourite of all: the highest score must get it, whatever the order.
  std::vector<float> ladder = {-kMost, -1000, -1, -kLeast, 0, kLeast, 1, 1000, kMost};
  for (size_t high = 1; high < ladder.size(); ++high) {
    const float low = ladder[high - 1];
    if (low == -kMost) continue;  // needs something lower for expert 1
    const ScoreMatrix scores = make_scores(2, {low, -kMost, ladder[high], -kMost});
    EXPECT_EQ(balanced_assignment(scores), (Assignment{1, 0})) << ladder[high];
  }
}

TEST(BalancedAssignment, EqualsBruteForceOnManyRandomCases) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 4000; ++trial) {
    const auto e = static_cast<int64_t>(1 + random() % 7);
    const auto n = static_cast<int64_t>(random() % 40);
    const int levels = trial % 3 == 0 ? 2 : trial % 3 == 1 ? 6 : 1'000'000;
    const ScoreMatrix scores = random_scores(random, n, e, levels);
    const Assignment assignment = balanced_assignment(scores);
    ASSERT_EQ(assignment, brute_force(scores)) << "trial " << trial;
    ASSERT_EQ(counts_of(assignment, e), balanced_capacities(n, e));
  }
}

// All experts are full in the end. With the place in the order where each one filled, every
// sequence must sit at its best expert that had not filled before its turn.
TEST(BalancedAssignment, FollowsFromItsClosingTable) {
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 200; ++trial) {
    const auto e = static_cast<int64_t>(1 + random() % 20);
    const ScoreMatrix scores =
        random_scores(random, e + static_cast<int64_t>(random() % 300), e, 8);
    const Assignment assignment = balanced_assignment(scores);
    const std::vector<size_t> order = choosing_order(scores);
    std::vector<size_t> closing(static_cast<size_t>(e));
    for (size_t place = 0; place < order.size(); ++place) closing[assignment[order[place]]] = place;
    for (size_t place = 0; place < order.size(); ++place) {
      const auto experts = ranked_experts(scores.row(static_cast<int64_t>(order[place])));
      const auto open = std::find_if(experts.begin(), experts.end(),
                                     [&](size_t expert) { return place <= closing[expert]; });
      ASSERT_NE(open, experts.end());
      ASSERT_EQ(assignment[order[place]], *open);
    }
  }
}

TEST(BalancedAssignment, PermutingSequencesPermutesTheResult) {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 100; ++trial) {
    const int64_t n = 50;
    const int64_t e = 4;
    ScoreMatrix scores(n, e);
    std::vector<float> distinct(static_cast<size_t>(n * e));
    std::iota(distinct.begin(), distinct.end(), -300.0F);
    std::shuffle(distinct.begin(), distinct.end(), random);
    std::copy(distinct.begin(), distinct.end(), scores.values().begin());
    std::vector<int64_t> source(static_cast<size_t>(n));
    std::iota(source.begin(), source.end(), 0);
    std::shuffle(source.begin(), source.end(), random);
    ScoreMatrix shuffled(n, e);
    for (int64_t i = 0; i < n; ++i) {
      const auto from = std::as_const(scores).row(source[static_cast<size_t>(i)]);
      std::copy(from.begin(), from.end(), shuffled.row(i).begin());
    }
    const Assignment plain = balanced_assignment(scores);
    const Assignment moved = balanced_assignment(shuffled);
    for (size_t i = 0; i < source.size(); ++i) {
      ASSERT_EQ(moved[i], plain[static_cast<size_t>(source[i])]);
    }
  }
}

TEST(BalancedAssignment, EqualsArgmaxWhereThatIsBalanced) {
  std::mt19937_64 random(4);
  ScoreMatrix scores = random_scores(random, 40, 5, 1'000'000);
  for (int64_t i = 0; i < 40; ++i) scores.row(i)[static_cast<size_t>(i % 5)] = 1;
  EXPECT_EQ(balanced_assignment(scores), argmax_assignment(scores));
}

TEST(BalancedAssignment, OneExpertTakesAll) {
  std::mt19937_64 random(5);
  EXPECT_EQ(balanced_assignment(random_scores(random, 17, 1, 9)), Assignment(17, 0));
}

TEST(BalancedAssignment, AsManySequencesAsExperts) {
  std::mt19937_64 random(6);
  const Assignment assignment = balanced_assignment(random_scores(random, 300, 300, 50));
  EXPECT_EQ(counts_of(assignment, 300), std::vector<int64_t>(300, 1));
}

TEST(BalancedAssignment, ManyExperts) {
  // Above 32,767 and 255: expert numbers must not pass through a signed or smaller type.
  constexpr int64_t kExperts = 33'000;
  ScoreMatrix scores(1, kExperts);
  scores.row(0)[32'999] = 1;
  EXPECT_EQ(argmax_assignment(scores), (Assignment{32'999}));
}

TEST(BalancedAssignment, RefusesScoresThatAreNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    ScoreMatrix scores(10, 3);
    scores.row(7)[2] = bad;
    using Assign = Assignment (*)(const ScoreMatrix&);
    for (const Assign assign : {Assign{balanced_assignment}, Assign{argmax_assignment}}) {
      try {
        assign(scores);
        FAIL() << "accepted " << bad;
      } catch (const Error& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find("sequence 7"), std::string::npos) << text;
        EXPECT_NE(text.find("expert 2"), std::string::npos) << text;
      }
    }
  }
}

TEST(BalancedAssignment, FewerSequencesThanExpertsLeaveTheLastOnesEmpty) {
  EXPECT_EQ(balanced_assignment(ScoreMatrix(3, 4)), (Assignment{0, 1, 2}));
  EXPECT_EQ(balanced_assignment(make_scores(4, {-3, -2, -1, 0, -3, -2, -1, 0})),
            (Assignment{1, 0}));
  EXPECT_TRUE(balanced_assignment(ScoreMatrix(0, 3)).empty());
  EXPECT_TRUE(argmax_assignment(ScoreMatrix(0, 1)).empty());
}

TEST(BalancedCapacities, FirstOnesTakeTheRemainder) {
  EXPECT_EQ(balanced_capacities(11, 4), (std::vector<int64_t>{3, 3, 3, 2}));
  EXPECT_EQ(balanced_capacities(12, 4), (std::vector<int64_t>{3, 3, 3, 3}));
  EXPECT_EQ(balanced_capacities(0, 2), (std::vector<int64_t>{0, 0}));
  EXPECT_THROW(balanced_capacities(5, 0), Error);
  EXPECT_THROW(balanced_capacities(5, 65536), Error);
  EXPECT_THROW(balanced_capacities(-1, 2), Error);
}

}  // namespace
}  // namespace smalltalk
