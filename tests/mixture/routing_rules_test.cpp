#include "smalltalk/mixture/evaluation/routing_rules.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace smalltalk {
namespace {

// Probabilities of the targets, [N][S].
TokenLikelihoods likelihoods(const std::vector<std::vector<double>>& probabilities) {
  TokenLikelihoods result(std::ssize(probabilities), std::ssize(probabilities[0]));
  for (size_t i = 0; i < probabilities.size(); ++i) {
    for (size_t s = 0; s < probabilities[i].size(); ++s) {
      result.row(static_cast<int64_t>(i))[s] = static_cast<float>(std::log(probabilities[i][s]));
    }
  }
  return result;
}

class RoutingRules : public ::testing::Test {
 protected:
  // Two sequences of three targets under two experts.
  const std::vector<TokenLikelihoods> experts_ = {
      likelihoods({{0.5, 0.1, 0.2}, {0.25, 0.5, 0.5}}),
      likelihoods({{0.25, 0.4, 0.8}, {0.5, 0.5, 0.125}})};
  static constexpr double kError = 1e-6;
};

TEST_F(RoutingRules, ScoresOfPrefixes) {
  const ScoreMatrix two = prefix_scores(experts_, 2), four = prefix_scores(experts_, 4);
  EXPECT_NEAR(two.row(0)[0], std::log(0.5), kError);
  EXPECT_NEAR(two.row(1)[1], std::log(0.5), kError);
  EXPECT_NEAR(four.row(0)[0], std::log(0.01), kError);
  EXPECT_NEAR(four.row(1)[0], std::log(0.0625), kError);
  // A longer prefix changes its mind.
  EXPECT_EQ(argmax_assignment(two), (Assignment{0, 1}));
  EXPECT_EQ(argmax_assignment(four), (Assignment{1, 0}));
}

TEST_F(RoutingRules, OneExpertASequence) {
  const std::vector<double> found = under_assignment(experts_, {1, 0});
  EXPECT_NEAR(found[0], std::log(0.08), kError);
  EXPECT_NEAR(found[1], std::log(0.0625), kError);
  EXPECT_EQ(round_robin(5, 2), (Assignment{0, 1, 0, 1, 0}));
}

TEST_F(RoutingRules, EnsemblesMixProbabilitiesNotLogarithms) {
  ScoreMatrix weights(2, 2);
  weights.row(0)[0] = 0.25F;
  weights.row(0)[1] = 0.75F;
  weights.row(1)[1] = 1.0F;
  const std::vector<double> found = under_ensemble(experts_, weights);
  EXPECT_NEAR(found[0], std::log(0.3125 * 0.325 * 0.65), kError);
  EXPECT_NEAR(found[1], under_assignment(experts_, {0, 1})[1], kError);
}

TEST_F(RoutingRules, PosteriorIsBayes) {
  // p(prefix | e) = 0.5 and 0.25, then 0.25 and 0.5.
  const ScoreMatrix scores = prefix_scores(experts_, 2);
  const ScoreMatrix both = posterior(scores, 2, 1);
  EXPECT_NEAR(both.row(0)[0], 2.0 / 3, kError);
  EXPECT_NEAR(both.row(0)[1], 1.0 / 3, kError);
  EXPECT_NEAR(both.row(1)[1], 2.0 / 3, kError);
  const ScoreMatrix one = posterior(scores, 1, 1);
  EXPECT_EQ(one.row(0)[0], 1);
  EXPECT_EQ(one.row(0)[1], 0);
  const ScoreMatrix sharp = posterior(scores, 2, 0.5);  // probabilities squared
  EXPECT_NEAR(sharp.row(0)[0], 4.0 / 5, kError);
  EXPECT_NEAR(posterior(scores, 2, 1e-3).row(0)[0], 1, kError);
  EXPECT_NEAR(posterior(scores, 2, 1e9).row(0)[0], 0.5, kError);
}

TEST_F(RoutingRules, DomainsGoToTheExpertThatIsBestOnThem) {
  const std::vector<uint16_t> domain = {2, 0};
  // Sequence 0 likes expert 1 best, sequence 1 expert 0; of the log-likelihoods of both, log 0.01
  // + log 0.0625 < log 0.08 + log 0.03125.
  EXPECT_EQ(best_expert_of_domains(experts_, domain, 3), (std::vector<uint16_t>{0, 1, 1}));
}

}  // namespace
}  // namespace smalltalk
