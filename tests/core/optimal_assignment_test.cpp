#include "smalltalk/core/assignment/optimal_assignment.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <random>

#include "core/exact_transport.hpp"
#include "smalltalk/core/system/error.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

constexpr double kEpsilon = 1e-3;
constexpr double kSlack = 1e-7;  // what regrets in steps of 2^-24 nats and doubles may add
const HostCollectives kAlone;

// Scores in steps of 2^-8 nats, so that totals are integers: what an exact solver can add up.
constexpr double kScoreStep = 0x1p-8;

std::vector<int64_t> counts_of(std::span<const uint16_t> assignment, size_t num_experts) {
  std::vector<int64_t> counts(num_experts);
  for (const uint16_t expert : assignment) ++counts.at(expert);
  return counts;
}

double mean_regret(const ScoreMatrix& scores, std::span<const uint16_t> assignment) {
  double sum = 0;
  for (int64_t i = 0; i < scores.num_sequences(); ++i) {
    const auto row = scores.row(i);
    sum += static_cast<double>(row[assignment[static_cast<size_t>(i)]]) -
           static_cast<double>(*std::max_element(row.begin(), row.end()));
  }
  return sum / static_cast<double>(scores.num_sequences());
}

// What the header promises of an optimal assignment, all but that the bound is one.
void expect_promises(const ScoreMatrix& scores, std::span<const int64_t> capacities, double epsilon,
                     const OptimalAssignment& result) {
  ASSERT_EQ(static_cast<int64_t>(result.expert.size()), scores.num_sequences());
  EXPECT_EQ(counts_of(result.expert, capacities.size()),
            std::vector<int64_t>(capacities.begin(), capacities.end()));
  EXPECT_NEAR(result.mean_regret, mean_regret(scores, result.expert), kSlack);
  EXPECT_LE(result.bound - result.mean_regret, epsilon);
  EXPECT_GE(result.bound, result.mean_regret);
  EXPECT_LE(result.bound, 0);
  // The prices prove it: D(p), with plain sums.
  double dual = 0;
  for (int64_t i = 0; i < scores.num_sequences(); ++i) {
    const auto row = scores.row(i);
    double best = -std::numeric_limits<double>::infinity();
    for (size_t e = 0; e < row.size(); ++e) best = std::max(best, row[e] - result.prices[e]);
    dual += best - static_cast<double>(*std::max_element(row.begin(), row.end()));
  }
  for (size_t e = 0; e < capacities.size(); ++e) {
    dual += static_cast<double>(capacities[e]) * result.prices[e];
  }
  EXPECT_NEAR(result.bound, std::min(0.0, dual / static_cast<double>(scores.num_sequences())),
              1e-6);
}

ScoreMatrix random_scores(std::mt19937_64& random, int64_t n, int64_t e, int64_t levels) {
  ScoreMatrix scores(n, e);
  for (float& value : scores.values()) {
    value = static_cast<float>(kScoreStep) *
            -static_cast<float>(random() % static_cast<uint64_t>(levels));
  }
  return scores;
}

// Any capacities with the sum n; many are 0.
std::vector<int64_t> random_capacities(std::mt19937_64& random, int64_t n, int64_t e) {
  std::vector<int64_t> capacities(static_cast<size_t>(e));
  const auto most = static_cast<int64_t>(1 + random() % static_cast<uint64_t>(e));
  for (int64_t i = 0; i < n; ++i) {
    ++capacities[random() % static_cast<uint64_t>(most)];
  }
  std::shuffle(capacities.begin(), capacities.end(), random);
  return capacities;
}

// Kinds of scores that are hard for one reason or another.
ScoreMatrix hard_scores(int kind, int64_t n, int64_t e) {
  ScoreMatrix scores(n, e);
  std::mt19937_64 random(static_cast<uint64_t>(100 + kind));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < n; ++i) {
    const auto row = scores.row(i);
    const float strength = std::exp(normal(random));
    const float level = 300 * normal(random);
    const size_t home = random() % static_cast<uint64_t>(e);
    for (size_t k = 0; k < row.size(); ++k) {
      const auto place = static_cast<float>(k);
      switch (kind) {
        case 0:
          row[k] = 5 * normal(random);
          break;
        case 1:  // a home each; experts that all like or dislike
          row[k] = level + normal(random) + (k == home ? 3.0F : 0.0F) + 2 * std::sin(2 * place);
          break;
        case 2:
          row[k] = -strength * place;
          break;  // all prefer the same order
        case 3:
          row[k] = level;
          break;  // no preference at all
        case 4:
          row[k] = -place;
          break;  // all rows equal
        case 5:
          row[k] = static_cast<float>(home % (k + 2));
          break;  // few distinct rows
        case 6:   // half of them tie exactly
          row[k] = i % 2 == 0 ? (k < 2 ? 10.0F : 0.0F) : 5 * normal(random);
          break;
        case 7:
          row[k] = std::exp(6 * normal(random));
          break;  // outliers
        case 8:   // masked, as far as a float goes
          row[k] = k == home ? -std::numeric_limits<float>::max() : normal(random);
          break;
        default:
          row[k] = 1e6F * static_cast<float>(k == home) + normal(random);  // far apart
      }
    }
  }
  return scores;
}
constexpr int kHardKinds = 10;

TEST(OptimalAssignment, WorkedExample) {
  ScoreMatrix scores(3, 2);
  const std::array<float, 6> values = {-1, -2, -1, -5, -1, -3};  // all prefer expert 0
  std::copy(values.begin(), values.end(), scores.values().begin());
  const std::array<int64_t, 2> capacities = {2, 1};
  const auto result = optimal_assignment(local_scores(scores), capacities, kEpsilon, 1, kAlone);
  EXPECT_EQ(result.expert, (Assignment{1, 0, 0}));  // sequence 0 loses least
  EXPECT_NEAR(result.mean_regret, -1.0 / 3, kSlack);
  expect_promises(scores, capacities, kEpsilon, result);
}

TEST(OptimalAssignment, EqualsTheBestOfAllAssignmentsOfTinyCases) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    const auto e = static_cast<int64_t>(1 + random() % 4);
    const auto n = static_cast<int64_t>(1 + random() % 6);
    const ScoreMatrix scores = random_scores(random, n, e, trial % 2 == 0 ? 3 : 2000);
    const auto capacities = random_capacities(random, n, e);
    // All assignments: sequence i's expert is the i-th digit of a number in base e.
    double best = -std::numeric_limits<double>::infinity();
    int64_t codes = 1;
    for (int64_t i = 0; i < n; ++i) codes *= e;
    for (int64_t code = 0; code < codes; ++code) {
      Assignment assignment;
      for (int64_t i = 0, rest = code; i < n; ++i, rest /= e) {
        assignment.push_back(static_cast<uint16_t>(rest % e));
      }
      if (counts_of(assignment, capacities.size()) == capacities) {
        best = std::max(best, mean_regret(scores, assignment));
      }
    }
    const auto result = optimal_assignment(local_scores(scores), capacities, 1e-5, 2, kAlone);
    expect_promises(scores, capacities, 1e-5, result);
    ASSERT_GE(result.bound, best) << "trial " << trial;
    ASSERT_NEAR(result.mean_regret, best, 1e-5) << "trial " << trial;
    const auto bound = dual_bound(local_scores(scores), capacities, 2, kAlone);
    ASSERT_GE(bound.mean_regret, best) << "trial " << trial;
    ASSERT_LE(bound.mean_regret, best + 2e-4) << "trial " << trial;
  }
}

TEST(OptimalAssignment, EqualsANetworkSimplexOnManyCases) {
  if (!has_exact_transport) GTEST_SKIP() << "LEMON (liblemon-dev) is not installed";
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 400; ++trial) {
    // A few are larger than the first level, so that most sequences stay out of the search.
    const bool large = trial % 40 == 0;
    const auto e = static_cast<int64_t>(1 + random() % (large ? 12 : 20));
    const auto n = static_cast<int64_t>(1 + random() % (large ? 30'000 : 150));
    const int64_t levels = std::array<int64_t, 4>{
        1, 2, 20, 100'000}[static_cast<size_t>(large ? 2 + trial / 40 % 2 : trial % 4)];
    const ScoreMatrix scores = random_scores(random, n, e, levels);
    const auto capacities =
        trial % 3 == 0 ? balanced_capacities(n, e) : random_capacities(random, n, e);
    std::vector<int64_t> values;  // regrets in steps, and the same scores as codes
    std::vector<uint16_t> codes;
    bool codes_fit = true;
    for (int64_t i = 0; i < n; ++i) {
      const auto row = scores.row(i);
      const float best = *std::max_element(row.begin(), row.end());
      for (const float score : row) {
        values.push_back(std::llround((score - best) / kScoreStep));
        const double code = score / kScoreStep + 65'535;
        codes_fit &= code >= 0;
        codes.push_back(static_cast<uint16_t>(std::max(0.0, code)));
      }
    }
    const double exact = static_cast<double>(exact_transport(values, capacities)) * kScoreStep /
                         static_cast<double>(n);
    const auto result = optimal_assignment(local_scores(scores), capacities, 1e-5, 2, kAlone);
    expect_promises(scores, capacities, 1e-5, result);
    ASSERT_GE(result.bound, exact) << "trial " << trial;
    ASSERT_NEAR(result.mean_regret, exact, 1e-5) << "trial " << trial;
    const auto bound = dual_bound(local_scores(scores), capacities, 2, kAlone);
    ASSERT_GE(bound.mean_regret, exact) << "trial " << trial;
    ASSERT_LE(bound.mean_regret, exact + 2e-4) << "trial " << trial;
    if (!codes_fit) continue;
    const LocalScores<uint16_t> coded{e, {{0, codes}}, -65'535 * kScoreStep, kScoreStep};
    const auto of_codes = optimal_assignment(coded, capacities, 1e-5, 2, kAlone);
    ASSERT_EQ(of_codes.expert, result.expert) << "trial " << trial;
    ASSERT_EQ(of_codes.bound, result.bound);
    ASSERT_EQ(dual_bound(coded, capacities, 1, kAlone).mean_regret, bound.mean_regret);
  }
}

TEST(OptimalAssignment, KeepsItsPromisesOnHardCases) {
  for (int kind = 0; kind < kHardKinds; ++kind) {
    for (const int64_t n : {10, 5'000, 60'000}) {
      const int64_t e = 16;
      const ScoreMatrix scores = hard_scores(kind, n, e);
      std::vector<int64_t> capacities = balanced_capacities(n, e);
      for (const bool uneven : {false, true}) {
        SCOPED_TRACE("kind " + std::to_string(kind) + ", " + std::to_string(n) + " sequences" +
                     (uneven ? ", uneven" : ""));
        if (uneven) {  // one of one place, one of none
          capacities[0] += capacities[1] + capacities[2] - std::min<int64_t>(1, capacities[2]);
          capacities[2] = std::min<int64_t>(1, capacities[2]);
          capacities[1] = 0;
        }
        if (kind < 7) {  // others hold scores that plain sums of doubles are not up to
          expect_promises(
              scores, capacities, kEpsilon,
              optimal_assignment(local_scores(scores), capacities, kEpsilon, 2, kAlone));
        } else {
          const auto result =
              optimal_assignment(local_scores(scores), capacities, kEpsilon, 2, kAlone);
          EXPECT_EQ(counts_of(result.expert, capacities.size()), capacities);
          EXPECT_LE(result.bound - result.mean_regret, kEpsilon);
        }
      }
    }
  }
}

TEST(OptimalAssignment, NoOtherAssignmentIsAboveTheBound) {
  for (int kind = 0; kind < 7; ++kind) {
    const int64_t n = 20'000;
    const int64_t e = 8;
    const ScoreMatrix scores = hard_scores(kind, n, e);
    const auto capacities = balanced_capacities(n, e);
    const auto bound = dual_bound(local_scores(scores), capacities, 2, kAlone).mean_regret;
    const auto best = optimal_assignment(local_scores(scores), capacities, kEpsilon, 2, kAlone);
    for (const Assignment& other : {balanced_assignment(scores), random_assignment(n, e, 1)}) {
      EXPECT_LE(mean_regret(scores, other), bound);
      EXPECT_LE(mean_regret(scores, other), best.bound);
      EXPECT_LE(mean_regret(scores, other), best.mean_regret + kEpsilon);
    }
  }
}

// All rows have to take the expert that they like less, by 1.75 of the steps of 2^-24 nats in which
// regrets are summed: rounded to 2 steps, the sum alone would be below the true regret.
TEST(OptimalAssignment, TheBoundHoldsBetweenTheStepsOfItsSums) {
  const int64_t n = 100;
  ScoreMatrix scores(n, 2);
  for (int64_t i = 0; i < n; ++i) scores.row(i)[1] = -1.75F * 0x1p-24F;
  const std::vector<int64_t> capacities = {0, n};
  const double truth = mean_regret(scores, Assignment(n, 1));
  EXPECT_EQ(truth, -1.75 * 0x1p-24);
  EXPECT_GE(dual_bound(local_scores(scores), capacities, 1, kAlone).mean_regret, truth);
  EXPECT_GE(optimal_assignment(local_scores(scores), capacities, kEpsilon, 1, kAlone).bound, truth);
}

TEST(OptimalAssignment, SmallerEpsilonsHoldToo) {
  const ScoreMatrix scores = hard_scores(1, 30'000, 8);
  const auto capacities = balanced_capacities(30'000, 8);
  for (const double epsilon : {1.0, 1e-2, 1e-4, 1e-6}) {
    expect_promises(scores, capacities, epsilon,
                    optimal_assignment(local_scores(scores), capacities, epsilon, 2, kAlone));
  }
  EXPECT_THROW(optimal_assignment(local_scores(scores), capacities, 1e-7, 2, kAlone), Error);
  EXPECT_THROW(optimal_assignment(local_scores(scores), capacities, std::nan(""), 2, kAlone),
               Error);
}

// Blocks of rows dealt to ranks in turn, so that every rank has several.
LocalScores<float> dealt_rows(const ScoreMatrix& scores, int rank, int size, int64_t block) {
  LocalScores<float> mine{scores.num_experts(), {}};
  const int64_t n = scores.num_sequences();
  for (int64_t first = rank * block; first < n; first += size * block) {
    mine.blocks.push_back(
        {static_cast<uint64_t>(first),
         scores.values().subspan(
             static_cast<size_t>(first * scores.num_experts()),
             static_cast<size_t>(std::min(block, n - first) * scores.num_experts()))});
  }
  return mine;
}

TEST(OptimalAssignment, IsTheSameForAnyRanksAndThreads) {
  for (const int kind : {0, 2, 3, 6}) {
    const int64_t n = 140'000;  // three levels
    const int64_t e = 4;
    const ScoreMatrix scores = hard_scores(kind, n, e);
    const auto capacities = balanced_capacities(n, e);
    const auto alone = optimal_assignment(local_scores(scores), capacities, kEpsilon, 1, kAlone);
    const auto bound = dual_bound(local_scores(scores), capacities, 1, kAlone);
    for (const int size : {1, 2, 3}) {
      for (const int64_t block : {int64_t{17'001}, n}) {  // n: all rows on rank 0
        run_thread_ranks(size, [&](const HostCollectives& ranks) {
          const auto mine = dealt_rows(scores, ranks.rank, size, block);
          const auto result = optimal_assignment(mine, capacities, kEpsilon, 1 + size, ranks);
          EXPECT_EQ(result.prices, alone.prices);
          EXPECT_EQ(result.mean_regret, alone.mean_regret);
          EXPECT_EQ(result.bound, alone.bound);
          ASSERT_EQ(static_cast<int64_t>(result.expert.size()), mine.num_rows());
          auto expert = result.expert.begin();
          for (const auto& rows : mine.blocks) {
            const auto count = static_cast<ptrdiff_t>(rows.values.size()) / e;
            const auto expected =
                alone.expert.begin() + static_cast<ptrdiff_t>(rows.first_sequence);
            EXPECT_TRUE(std::equal(expert, expert + count, expected));
            expert += count;
          }
          const auto same = dual_bound(mine, capacities, 3, ranks);
          EXPECT_EQ(same.prices, bound.prices);
          EXPECT_EQ(same.mean_regret, bound.mean_regret);
        });
      }
    }
  }
}

// Some percent of all, as the header says, at a time.
TEST(OptimalAssignment, RanksShareFewOfTheirScores) {
  const int64_t n = 1'000'000;
  const int64_t e = 8;
  const ScoreMatrix scores = hard_scores(0, n, e);
  HostCollectives counting;
  std::vector<size_t> shared;  // bytes
  counting.all_gather_bytes = [&](std::span<const std::byte> mine) {
    shared.push_back(mine.size());
    return kAlone.all_gather_bytes(mine);
  };
  optimal_assignment(local_scores(scores), balanced_capacities(n, e), kEpsilon, 2, counting);
  ASSERT_FALSE(shared.empty());
  EXPECT_LE(std::ranges::max(shared), scores.values().size_bytes() / 10);
}

TEST(OptimalAssignment, OneExpertTakesAllAndNobodyNeedsNone) {
  std::mt19937_64 random(3);
  const ScoreMatrix scores = random_scores(random, 17, 1, 9);
  const std::array<int64_t, 1> all = {17};
  const auto result = optimal_assignment(local_scores(scores), all, kEpsilon, 2, kAlone);
  EXPECT_EQ(result.expert, Assignment(17, 0));
  EXPECT_EQ(result.mean_regret, 0);
  const ScoreMatrix nothing(0, 3);
  const std::array<int64_t, 3> none = {0, 0, 0};
  EXPECT_TRUE(optimal_assignment(local_scores(nothing), none, kEpsilon, 2, kAlone).expert.empty());
  EXPECT_EQ(dual_bound(local_scores(nothing), none, 2, kAlone).mean_regret, 0);
}

TEST(OptimalAssignment, RefusesWhatItCannotAssign) {
  ScoreMatrix scores(10, 3);
  const std::vector<int64_t> capacities = {4, 3, 3};
  const auto assign = [&](std::vector<int64_t> places) {
    optimal_assignment(local_scores(scores), places, kEpsilon, 1, kAlone);
  };
  EXPECT_THROW(assign({4, 3, 2}), Error);
  EXPECT_THROW(assign({5, 5}), Error);
  EXPECT_THROW(assign({11, 0, -1}), Error);
  const std::vector<uint16_t> codes(30);
  const LocalScores<uint16_t> falling{3, {{0, codes}}, 0, -1};
  EXPECT_THROW(dual_bound(falling, capacities, 1, kAlone), Error);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    scores.row(7)[2] = bad;
    try {
      assign(capacities);
      FAIL() << "accepted " << bad;
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("sequence 7"), std::string::npos) << text;
      EXPECT_NE(text.find("expert 2"), std::string::npos) << text;
    }
  }
}

TEST(ThreadRanks, DoWhatCollectivesSay) {
  run_thread_ranks(3, [](const HostCollectives& ranks) {
    const int64_t rank = ranks.rank;
    std::vector<int64_t> sums = {rank, 10};
    ranks.all_reduce_sum_int64(sums);
    EXPECT_EQ(sums, (std::vector<int64_t>{3, 30}));
    std::vector<double> most = {static_cast<double>(rank), -static_cast<double>(rank)};
    ranks.all_reduce_max(most);
    EXPECT_EQ(most, (std::vector<double>{2, 0}));
    const std::vector<std::byte> mine(static_cast<size_t>(rank), std::byte(rank));
    EXPECT_EQ(ranks.all_gather_bytes(mine),
              (HostCollectives::Bytes{std::byte{1}, std::byte{2}, std::byte{2}}));
    // Rank r sends r bytes of value 10 r + q to rank q.
    HostCollectives::Bytes sent;
    HostCollectives::Bytes expected;
    for (int64_t q = 0; q < 3; ++q) {
      sent.insert(sent.end(), static_cast<size_t>(rank), std::byte(10 * rank + q));
      expected.insert(expected.end(), static_cast<size_t>(q), std::byte(10 * q + rank));
    }
    EXPECT_EQ(ranks.all_to_all(sent, std::vector<int64_t>(3, rank)), expected);
    std::vector<std::byte> word = {std::byte(rank)};
    ranks.broadcast(word, 2);
    EXPECT_EQ(word[0], std::byte{2});
    std::vector<float> in = {1, 2, 3};
    std::vector<float> out(1);
    ranks.reduce_scatter_sum(in, out);
    EXPECT_EQ(out[0], 3 * static_cast<float>(rank + 1));
    std::vector<float> all(3);
    ranks.all_gather(out, all);
    EXPECT_EQ(all, (std::vector<float>{3, 6, 9}));
    ranks.all_reduce_sum(in);
    EXPECT_EQ(in, all);
    ranks.barrier();
  });
  // One that fails does not leave the others waiting.
  EXPECT_THROW(run_thread_ranks(3,
                                [](const HostCollectives& ranks) {
                                  if (ranks.rank == 1) throw Error("failed");
                                  ranks.barrier();
                                }),
               Error);
}

}  // namespace
}  // namespace smalltalk
