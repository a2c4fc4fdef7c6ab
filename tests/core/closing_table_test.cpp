// The closing table against the walk of the definition, for ranks, threads and rows dealt in every
// way.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/assignment/score_codes.hpp"
#include "smalltalk/core/system/error.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

using Random = std::mt19937_64;

// The definition, walked: sequences in order of best score or margin, each to its best expert that
// has room.
template <typename Score>
Assignment walk(std::span<const Score> scores, std::span<const int64_t> capacities,
                bool by_margin) {
  const size_t experts = capacities.size();
  const size_t n = scores.size() / experts;
  const auto row = [&](size_t i) { return scores.subspan(i * experts, experts); };
  std::vector<double> key(n);
  for (size_t i = 0; i < n; ++i) {
    std::vector<Score> sorted(row(i).begin(), row(i).end());
    std::sort(sorted.rbegin(), sorted.rend());
    key[i] = !by_margin ? sorted[0] : experts > 1 ? static_cast<Score>(sorted[0] - sorted[1]) : 0;
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key[a] > key[b]; });
  std::vector<int64_t> room(capacities.begin(), capacities.end());
  Assignment assignment(n);
  for (const size_t i : order) {
    size_t best = experts;
    for (size_t e = 0; e < experts; ++e) {
      if (room[e] > 0 && (best == experts || row(i)[e] > row(i)[best])) best = e;
    }
    --room[best];
    assignment[i] = static_cast<uint16_t>(best);
  }
  return assignment;
}

std::vector<int64_t> random_capacities(Random& random, int64_t n, size_t experts) {
  if (random() % 2 == 0) return balanced_capacities(n, static_cast<int64_t>(experts));
  std::vector<int64_t> capacities(experts);
  for (int64_t i = 0; i < n; ++i) ++capacities[random() % (1 + random() % experts)];
  return capacities;
}

// Scores of several kinds: with many ties or none, all rows equal, all of one opinion, in
// descending order, with both zeros and the ends of the type.
template <typename Score>
std::vector<Score> random_scores(Random& random, size_t n, size_t experts) {
  std::vector<Score> scores(n * experts);
  const uint64_t kind = random() % 6;
  const uint64_t levels = kind == 0 ? 2 : kind == 1 ? 6 : 60'000;
  for (size_t i = 0; i < scores.size(); ++i) {
    double level = static_cast<double>(random() % levels);
    if (kind == 3) level = static_cast<double>(1000 - i % experts);                // equal rows
    if (kind == 4) level = static_cast<double>(i / experts + 10 * (i % experts));  // one opinion
    if (std::is_same_v<Score, float>) {
      scores[i] = static_cast<Score>((level - static_cast<double>(levels) / 2) / 4);
      if (scores[i] == 0 && random() % 2 == 0) scores[i] = static_cast<Score>(-0.0);
      if (kind == 5 && random() % 20 == 0) {
        const float ends[] = {std::numeric_limits<float>::max(), -std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::denorm_min()};
        scores[i] = static_cast<Score>(ends[random() % 3]);
      }
    } else {
      scores[i] = static_cast<Score>(level);
      if (kind == 5 && random() % 20 == 0) scores[i] = static_cast<Score>(random() % 2 * 65535);
    }
  }
  return scores;
}

// Deals the rows out to ranks: runs of any length, in any way.
std::vector<std::vector<std::pair<size_t, size_t>>> deal_rows(Random& random, size_t n, int ranks) {
  std::vector<std::vector<std::pair<size_t, size_t>>> runs(static_cast<size_t>(ranks));
  for (size_t first = 0; first < n;) {
    const size_t length = std::min<size_t>(n - first, 1 + random() % (1 + random() % 30));
    runs[random() % runs.size()].push_back({first, length});
    first += length;
  }
  return runs;
}

template <typename Score>
void expect_the_walk(Random& random, size_t n, size_t experts, int ranks, int threads) {
  const std::vector<Score> scores = random_scores<Score>(random, n, experts);
  const auto capacities = random_capacities(random, static_cast<int64_t>(n), experts);
  const auto method = random() % 2 == 0 ? AssignmentMethod::greedy : AssignmentMethod::margin;
  const auto runs = deal_rows(random, n, ranks);
  const Assignment expected = walk<Score>(scores, capacities, method == AssignmentMethod::margin);
  std::vector<AssignmentRule> rules(static_cast<size_t>(ranks));
  Assignment found(n);
  run_thread_ranks(ranks, [&](const HostCollectives& world) {
    const auto rank = static_cast<size_t>(world.rank);
    LocalScores<Score> mine{static_cast<int64_t>(experts), {}};
    for (const auto& [first, length] : runs[rank]) {
      mine.blocks.push_back({first, std::span(scores).subspan(first * experts, length * experts)});
    }
    rules[rank] = balanced_rule(mine, capacities, method, threads, world);
    const Assigned assigned = apply_rule(mine, rules[rank], threads, world);
    ASSERT_EQ(assigned.stats.assigned_counts, capacities);
    size_t at = 0;
    for (const auto& [first, length] : runs[rank]) {
      std::copy_n(assigned.expert.begin() + static_cast<int64_t>(at), length,
                  found.begin() + static_cast<int64_t>(first));
      at += length;
    }
  });
  ASSERT_EQ(found, expected);
  const auto room = std::count_if(capacities.begin(), capacities.end(),
                                  [](int64_t capacity) { return capacity > 0; });
  for (const AssignmentRule& rule : rules) {
    ASSERT_EQ(rule.closings, rules[0].closings);
    ASSERT_EQ(static_cast<int64_t>(rule.closings.size()), std::max<int64_t>(0, room - 1));
  }
}

TEST(ClosingTable, IsTheWalksForAnyRanksThreadsAndRows) {
  Random random(1);
  for (int trial = 0; trial < 300; ++trial) {
    for (const int ranks : {1, 2, 3, 4, 7}) {
      const size_t experts = 1 + random() % 9;
      const size_t n = random() % 60;  // also fewer than experts
      const int threads = 1 + static_cast<int>(random() % 4);
      SCOPED_TRACE(testing::Message() << "trial " << trial << ", " << ranks << " ranks");
      expect_the_walk<float>(random, n, experts, ranks, threads);
      expect_the_walk<uint16_t>(random, n, experts, ranks, threads);
      if (HasFatalFailure()) return;
    }
  }
}

// Enough rows for many lines of counts, for choosing again and for forgetting; many experts.
TEST(ClosingTable, IsTheWalksForLargeCases) {
  Random random(2);
  for (const auto& [n, experts] :
       {std::pair<size_t, size_t>{40'000, 8}, {9'000, 300}, {3'000, 1024}}) {
    for (int trial = 0; trial < 2; ++trial) {
      expect_the_walk<float>(random, n, experts, 2, 2);
      expect_the_walk<uint16_t>(random, n, experts, 1, 4);
    }
  }
}

// Rows beyond the largest piece of an order, all wanting the same expert after the other.
TEST(ClosingTable, SpansSeveralPieces) {
  constexpr int64_t kRows = (int64_t{1} << 20) + 5;
  std::vector<uint16_t> scores(2 * kRows);
  Random random(3);
  for (size_t i = 0; i < scores.size(); i += 2) {
    scores[i + 1] = static_cast<uint16_t>(random() % 1000);
    scores[i] = static_cast<uint16_t>(scores[i + 1] + 1);
  }
  const LocalScores<uint16_t> all{2, {{0, scores}}};
  const auto capacities = balanced_capacities(kRows, 2);
  const Assigned assigned =
      apply_rule(all, balanced_rule(all, capacities, AssignmentMethod::greedy, 2), 2);
  EXPECT_EQ(assigned.expert, walk<uint16_t>(scores, capacities, false));
}

TEST(ClosingTable, WorkedExample) {
  // Order by best score: 2 (-1), 0 (-2), 3 (-3), 1 (-4). Expert 0 fills with sequence 0.
  const std::vector<float> scores = {-2, -5, -4, -9, -1, -7, -3, -8};
  const LocalScores<float> all{2, {{0, scores}}};
  const auto capacities = balanced_capacities(4, 2);
  SelectionTraffic traffic;
  const auto rule = balanced_rule(all, capacities, AssignmentMethod::greedy, 1, {}, &traffic);
  ASSERT_EQ(rule.closings.size(), 1u);
  EXPECT_EQ(rule.closings[0].expert, 0);
  EXPECT_EQ(rule.closings[0].key.sequence, 0u);
  EXPECT_GT(traffic.reductions, 0);
  // Margins: 3, 5, 6, 5: the order is 2, 1, 3, 0, so expert 0 takes 2 and 1.
  const auto by_margin = balanced_rule(all, capacities, AssignmentMethod::margin);
  EXPECT_EQ(apply_rule(all, by_margin).expert, (Assignment{1, 0, 0, 1}));
}

// About b E^2 / 2 integers whatever N: the growing steps may cost a little more than bisection.
TEST(ClosingTable, MovesWhatIsPredicted) {
  Random random(4);
  for (const int64_t n : {2'000, 200'000}) {
    std::vector<float> scores(static_cast<size_t>(n * 16));
    std::normal_distribution<float> normal(-80, 10);
    for (float& score : scores) score = normal(random);
    SelectionTraffic traffic;
    balanced_rule(LocalScores<float>{16, {{0, scores}}}, balanced_capacities(n, 16),
                  AssignmentMethod::greedy, 2, {}, &traffic);
    const double predicted = predicted_selection_numbers(16, traffic.key_bits);
    EXPECT_LT(static_cast<double>(traffic.numbers), 1.3 * predicted);
    EXPECT_GT(static_cast<double>(traffic.numbers), 0.5 * predicted);
  }
}

TEST(ClosingTable, LargeIdsAreKept) {
  const std::vector<uint16_t> scores = {5, 5, 5, 5};  // ties by id, of which all 40 bits count
  const uint64_t first = (uint64_t{1} << 40) - 1;
  const LocalScores<uint16_t> all{
      2, {{7, std::span(scores).first(2)}, {first, std::span(scores).subspan(2)}}};
  const auto rule = balanced_rule(all, balanced_capacities(2, 2), AssignmentMethod::greedy);
  EXPECT_EQ(rule.closings[0].key.sequence, 7u);
  EXPECT_EQ(apply_rule(all, rule).expert, (Assignment{0, 1}));
}

// Replaying proves the table: whatever is changed, in the table or in the scores, is found.
TEST(ClosingTable, AnotherTableIsRefused) {
  Random random(5);
  const size_t n = 200;
  const std::vector<float> scores = random_scores<float>(random, n, 4);
  const LocalScores<float> all{4, {{0, scores}}};
  const auto rule = balanced_rule(all, balanced_capacities(n, 4), AssignmentMethod::greedy);
  ASSERT_NO_THROW(apply_rule(all, rule));
  for (size_t i = 0; i < rule.closings.size(); ++i) {
    for (const int64_t change : {-1, 1, 40}) {
      AssignmentRule other = rule;
      other.closings[i].key.sequence += static_cast<uint64_t>(change);
      EXPECT_THROW(apply_rule(all, other), Error);
    }
    AssignmentRule other = rule;
    other.closings.erase(other.closings.begin() + static_cast<int64_t>(i));
    EXPECT_THROW(apply_rule(all, other), Error);
    other = rule;
    other.closings[i].expert = rule.closings[(i + 1) % rule.closings.size()].expert;
    EXPECT_THROW(apply_rule(all, other), Error);
  }
  AssignmentRule other = rule;
  std::swap(other.capacities[0], other.capacities[1]);
  --other.capacities[0];
  ++other.capacities[1];
  EXPECT_THROW(apply_rule(all, other), Error);
}

TEST(ClosingTable, RefusesWhatDoesNotFit) {
  const std::vector<float> scores = {1, 2, 3, 4};
  const LocalScores<float> all{2, {{0, scores}}};
  const auto find = [&](std::vector<int64_t> capacities, AssignmentMethod method) {
    return balanced_rule(all, capacities, method);
  };
  EXPECT_THROW(find({1, 2}, AssignmentMethod::greedy), Error);
  EXPECT_THROW(find({3, -1}, AssignmentMethod::greedy), Error);
  EXPECT_THROW(find({1, 1, 0}, AssignmentMethod::greedy), Error);
  EXPECT_THROW(find({1, 1}, AssignmentMethod::optimal), Error);
  EXPECT_NO_THROW(find({2, 0}, AssignmentMethod::greedy));
}

TEST(SharedCapacities, FollowTheShares) {
  const std::vector<double> shares = {2, 1, 1};
  EXPECT_EQ(shared_capacities(8, 3, shares), (std::vector<int64_t>{4, 2, 2}));
  EXPECT_EQ(shared_capacities(10, 3, shares), (std::vector<int64_t>{5, 3, 2}));
  EXPECT_EQ(shared_capacities(11, 4, {}), balanced_capacities(11, 4));
  EXPECT_THROW(shared_capacities(8, 2, shares), Error);
  EXPECT_THROW(shared_capacities(8, 2, std::vector<double>{1, 0}), Error);
}

TEST(ScoreCodes, KeepOrderAndRange) {
  Random random(6);
  std::vector<float> scores(5000);
  std::normal_distribution<float> normal(-900, 200);
  for (float& score : scores) score = normal(random);
  const ScoreCoding coding = find_score_coding(scores);
  std::vector<uint16_t> codes(scores.size());
  encode_scores(scores, coding, codes);
  EXPECT_EQ(*std::min_element(codes.begin(), codes.end()), 0);
  EXPECT_EQ(*std::max_element(codes.begin(), codes.end()), 65535);
  for (size_t i = 0; i < scores.size(); ++i) {
    EXPECT_NEAR(coding.lowest + coding.step * codes[i], scores[i], 0.5001 * coding.step);
    if (i > 0 && scores[i] > scores[i - 1]) {
      EXPECT_GE(codes[i], codes[i - 1]);
    }
  }
  // One value, and none.
  const std::vector<float> same(3, -7);
  encode_scores(same, find_score_coding(same), std::span(codes).first(3));
  EXPECT_EQ(codes[2], 0);
  EXPECT_EQ(find_score_coding(same).lowest, -7);
  EXPECT_NO_THROW(find_score_coding({}));
  EXPECT_THROW(find_score_coding(std::vector<float>{1, std::nanf("")}), Error);
}

// The range is of all ranks' scores: one code for a score, wherever it was computed.
TEST(ScoreCodes, DoNotDependOnTheRanks) {
  const std::vector<float> scores = {-5, -1, -9, -4};
  const ScoreCoding alone = find_score_coding(scores);
  run_thread_ranks(3, [&](const HostCollectives& world) {
    const auto mine = world.rank == 2 ? std::span<const float>()
                                      : std::span(scores).subspan(world.rank == 0 ? 0 : 1,
                                                                  world.rank == 0 ? 1 : 3);
    const ScoreCoding coding = find_score_coding(mine, world);
    EXPECT_EQ(coding.lowest, alone.lowest);
    EXPECT_EQ(coding.step, alone.step);
  });
}

}  // namespace
}  // namespace smalltalk
