// The fused projection and cross-entropy against a float64 reference.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "fixtures.hpp"
#include "lm/cpu/cpu_kernels.hpp"
#include "lm/cpu/cpu_loss.hpp"
#include "loss_reference.hpp"

namespace smalltalk {
namespace {

// The tokens dealt to threads in these numbers; by default all to one.
double run_loss(const LossCase& c, int threads, float scale, std::vector<float>& d_hidden,
                std::vector<float>& d_head, std::vector<int64_t> sizes = {}) {
  const int64_t width = c.shape.hidden;
  if (sizes.empty()) sizes = {c.shape.tokens};
  std::vector<LossTokens> tokens;
  int64_t first = 0;
  for (const int64_t size : sizes) {
    tokens.push_back({size, c.hidden.data() + first * width, c.targets.data() + first,
                      d_hidden.data() + first * width});
    first += size;
  }
  ThreadTeam team(threads);
  FusedLoss loss(width, c.shape.vocab, team);
  std::vector<double> sums(static_cast<size_t>(threads));
  team.run([&](int thread) {
    sums[thread] = loss.run(thread, tokens, c.head.data(), scale, d_head.data());
  });
  return sums[0];
}

class LossTest : public testing::TestWithParam<std::pair<LossShape, float>> {};

TEST_P(LossTest, AgreesWithFloat64) {
  const auto [shape, spread] = GetParam();
  const LossCase c = random_loss_case(shape, spread);
  const float scale = 1.0F / static_cast<float>(shape.tokens);
  const LossReference r = loss_reference(c, scale);

  for (const int threads : {1, 2, 3}) {
    SCOPED_TRACE(threads);
    std::vector<float> d_hidden(c.hidden.size()), d_head(c.head.size());
    EXPECT_NEAR(run_loss(c, threads, scale, d_hidden, d_head), r.loss, 1e-5 * std::abs(r.loss));
    expect_near(d_hidden, r.d_hidden, 1e-4);
    expect_near(d_head, r.d_head, 1e-4);
  }

  std::vector<float> log_probs(static_cast<size_t>(shape.tokens));
  std::vector<uint8_t> greedy(log_probs.size());
  std::vector<float> scratch(static_cast<size_t>(log_probs_scratch_size(shape.hidden)));
  target_log_probs(shape.tokens, shape.hidden, shape.vocab, c.hidden.data(), c.head.data(),
                   c.targets.data(), log_probs.data(), greedy.data(), scratch.data());
  expect_near(log_probs, r.log_probs, 1e-5);
  EXPECT_EQ(std::vector<float>(greedy.begin(), greedy.end()), r.greedy);
}

// Tokens and vocabulary below, at and above the tiles; logits of a few hundred in the last case.
INSTANTIATE_TEST_SUITE_P(Shapes, LossTest,
                         testing::Values(std::pair(LossShape{5, 8, 2}, 1.0F),
                                         std::pair(LossShape{128, 16, 1024}, 0.5F),
                                         std::pair(LossShape{300, 16, 1025}, 0.5F),
                                         std::pair(LossShape{129, 8, 3000}, 1.0F),
                                         std::pair(LossShape{600, 4, 400}, 1.0F),
                                         std::pair(LossShape{40, 16, 50}, 8.0F)));

TEST(LossTest, GradientOfTheHeadIsAdded) {
  const LossCase c = random_loss_case({20, 8, 30}, 1);
  std::vector<float> once(c.head.size()), twice(c.head.size()), d_hidden(c.hidden.size());
  for (std::vector<float>* sum : {&once, &twice, &twice}) run_loss(c, 2, 1, d_hidden, *sum);
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(twice[i], 2 * once[i], 1e-5);
}

// In the last pass of a step some threads may have no tokens.
TEST(LossTest, BlocksOfAnySizeAddUp) {
  const LossCase c = random_loss_case({100, 8, 70}, 1);
  std::vector<float> whole(c.head.size()), parts(c.head.size());
  std::vector<float> d_whole(c.hidden.size()), d_parts(c.hidden.size());
  const double loss = run_loss(c, 1, 1, d_whole, whole);
  EXPECT_NEAR(run_loss(c, 2, 1, d_parts, parts, {37, 0, 63}), loss, 1e-4);
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(parts[i], whole[i], 1e-5);
  for (size_t i = 0; i < d_whole.size(); ++i) EXPECT_NEAR(d_parts[i], d_whole[i], 1e-5);
}

TEST(LossTest, SoftmaxChunksOfEveryInstructionSetAgreeWithFloat64) {
  constexpr int64_t kRows = 50, kTokens = 144;
  std::mt19937 generator(5);
  std::normal_distribution<float> normal(0, 20);
  std::vector<float> logits(3 * kRows * kTokens);
  for (float& value : logits) value = normal(generator);
  for (const CpuKernels* kernels : cpu_kernel_copies().runnable) {
    SCOPED_TRACE(kernels->instruction_set);
    std::vector<float> maximum(kTokens, -1e30F), sum(kTokens), factor(kTokens);
    std::vector<float> other_maximum = maximum, other_sum = sum;
    for (int chunk = 0; chunk < 3; ++chunk) {
      std::vector<float> part(logits.begin() + chunk * kRows * kTokens,
                              logits.begin() + (chunk + 1) * kRows * kTokens);
      kernels->softmax_chunk_sums(part.data(), kRows, kTokens,
                                  {other_maximum.data(), other_sum.data(), factor.data()});
      const std::vector<float> before = maximum, given = part;
      const bool moved = kernels->softmax_chunk(part.data(), kRows, kTokens,
                                                {maximum.data(), sum.data(), factor.data()});
      EXPECT_EQ(moved, maximum != before);
      for (size_t i = 0; i < part.size(); ++i) {
        const double x = static_cast<double>(given[i]) - maximum[i % kTokens];
        // 2^x to 2 ulp, after x itself was rounded.
        ASSERT_NEAR(part[i], std::exp2(x), (4e-7 - 1e-7 * x) * std::exp2(x) + 2e-38);
      }
    }
    EXPECT_EQ(sum, other_sum);
    for (int64_t t = 0; t < kTokens; ++t) {
      double expected = 0;
      for (int64_t i = t; i < 3 * kRows * kTokens; i += kTokens) {
        expected += std::exp2(static_cast<double>(logits[i]) - maximum[t]);
      }
      EXPECT_NEAR(sum[t], expected, 1e-6 * expected);
    }
  }
}

}  // namespace
}  // namespace smalltalk
