// Log-probabilities by token against the logits' softmax in double, and to the bit for every way to
// ask for them.
#include "smalltalk/lm/model/scoring.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "fixtures.hpp"
#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kVocab = 37;

DeviceConfig with_threads(int64_t threads) {
  DeviceConfig device;
  device.threads = threads;
  return device;
}

// [R][rows * length], gathered from pieces that must follow one another.
std::vector<std::vector<float>> log_probs(const ModelsView& models, const RowSource& rows,
                                          int64_t first, int64_t last,
                                          std::vector<std::vector<uint8_t>>* greedy = nullptr) {
  std::vector<std::vector<float>> all(static_cast<size_t>(models.size()));
  if (greedy != nullptr) greedy->resize(all.size());
  int64_t next = first;
  visit_log_probs(models, rows, first, last, [&](const LogProbs& piece) {
    EXPECT_EQ(piece.first, next);
    EXPECT_EQ(piece.length, rows.row_tokens - 1);
    EXPECT_LE(piece.count, models.impl().engine->rows_at_once(rows.row_tokens));
    next += piece.count;
    for (int64_t model = 0; model < models.size(); ++model) {
      for (int64_t i = 0; i < piece.count; ++i) {
        const auto row = piece.row(model, i);
        auto& values = all[static_cast<size_t>(model)];
        values.insert(values.end(), row.begin(), row.end());
        if (greedy == nullptr) continue;
        const auto flags = piece.greedy(model, i);
        auto& its = (*greedy)[static_cast<size_t>(model)];
        its.insert(its.end(), flags.begin(), flags.end());
      }
    }
  });
  EXPECT_EQ(next, std::max(first, last));
  return all;
}

// [rows * length]; `margins`, if asked for: how far each token's logit is above the highest other.
std::vector<double> log_softmax(const Transformer& model, const std::vector<int64_t>& tokens,
                                int64_t row_tokens, std::vector<float>* margins = nullptr) {
  const int64_t rows = std::ssize(tokens) / row_tokens;
  const std::vector<float> logits = model.logits(tokens, rows, row_tokens);
  std::vector<double> result;
  for (int64_t at = 0; at < std::ssize(tokens); ++at) {
    if (at % row_tokens == row_tokens - 1) continue;  // predicts what is behind the row
    const float* of_token = logits.data() + at * kVocab;
    double sum = 0;
    for (int64_t v = 0; v < kVocab; ++v) sum += std::exp(static_cast<double>(of_token[v]));
    const int64_t target = tokens[static_cast<size_t>(at + 1)];
    result.push_back(of_token[target] - std::log(sum));
    if (margins == nullptr) continue;
    float other = -INFINITY;
    for (int64_t v = 0; v < kVocab; ++v) {
      if (v != target) other = std::max(other, of_token[v]);
    }
    margins->push_back(of_token[target] - other);
  }
  return result;
}

class ScoringTest : public testing::TestWithParam<ModelConfig> {};

INSTANTIATE_TEST_SUITE_P(Kinds, ScoringTest,
                         testing::Values(tiny_model(FeedForward::swiglu, true),
                                         tiny_model(FeedForward::swiglu, false, 2),
                                         tiny_model(FeedForward::relu2, true, 1)));

TEST_P(ScoringTest, LogProbsAreTheLogSoftmaxOfTheLogits) {
  const std::vector<uint64_t> seeds = {3, 4, 5};
  for (const int64_t threads : {1, 2, 4}) {  // the last: more threads than models
    TransformerStack stack(GetParam(), with_threads(threads), seeds);
    for (const int64_t row_tokens : {2, 9, 130, 600}) {  // the last: longer than a block of the CPU
      const RowSource rows = random_rows(row_tokens, kVocab);
      const int64_t at_once = ModelsView(stack).impl().engine->rows_at_once(row_tokens);
      for (const int64_t count : {int64_t{1}, at_once - 1, at_once, at_once + 1}) {
        SCOPED_TRACE(testing::Message()
                     << threads << " threads, " << count << " rows of " << row_tokens);
        std::vector<std::vector<uint8_t>> greedy;
        const auto values = log_probs(stack, rows, 0, count, &greedy);
        std::vector<int64_t> tokens(static_cast<size_t>(count * row_tokens));
        if (count > 0) rows.read(0, count, tokens);
        for (int64_t m = 0; m < stack.size(); ++m) {
          std::vector<float> margins;
          const auto expected = log_softmax(stack[m], tokens, row_tokens, &margins);
          ASSERT_EQ(values[static_cast<size_t>(m)].size(), expected.size());
          for (size_t i = 0; i < expected.size(); ++i) {
            ASSERT_NEAR(values[static_cast<size_t>(m)][i], expected[i], 2e-5) << m << " " << i;
            if (std::abs(margins[i]) < 1e-5F) continue;  // either may round above the other
            ASSERT_EQ(greedy[static_cast<size_t>(m)][i], margins[i] > 0) << m << " " << i;
          }
        }
      }
    }
  }
}

TEST_P(ScoringTest, ARowsBitsAreItsOwn) {
  const std::vector<uint64_t> seeds = {3, 4, 5};
  const RowSource rows = random_rows(33, kVocab);
  const Transformer alone(GetParam(), with_threads(1), 4);
  const std::vector<float> all = log_probs(alone, rows, 0, 100)[0];
  for (const int64_t threads : {1, 2, 4}) {
    SCOPED_TRACE(threads);
    TransformerStack stack(GetParam(), with_threads(threads), seeds);
    EXPECT_EQ(log_probs(Transformer(GetParam(), with_threads(threads), 4), rows, 0, 100)[0], all);
    EXPECT_EQ(log_probs(stack, rows, 0, 100)[1], all);
    EXPECT_EQ(log_probs(stack[1], rows, 0, 100)[0], all);
    for (const auto& [first, last] : {std::pair(0, 1), {99, 100}, {5, 42}, {31, 63}, {7, 7}}) {
      const auto part = log_probs(stack, rows, first, last)[1];
      EXPECT_EQ(part, std::vector<float>(all.begin() + first * 32, all.begin() + last * 32));
    }
  }
}

TEST(LogLikelihood, IsTheSumOverAText) {
  const Transformer model(tiny_model(), DeviceConfig(), 3);
  const std::vector<int64_t> tokens = random_tokens(21, kVocab, 8);
  double sum = 0;
  for (const double value : log_softmax(model, tokens, 21)) sum += value;
  EXPECT_NEAR(log_likelihood(model, tokens), sum, 1e-4);
}

TEST(SumPrefixes, SumsInDoubleFromTheFront) {
  const std::vector<float> log_probs = {-1, -2, -0x1p-30F, -4};
  std::vector<double> sums(5);
  sum_prefixes(log_probs, std::vector<int64_t>{1, 2, 2, 4, 5}, sums);
  EXPECT_EQ(sums, (std::vector<double>{0, -1, -1, -3 - 0x1p-30, -7 - 0x1p-30}));
}

TEST(SumPrefixes, RefusesWhatDoesNotAscendWithinTheRow) {
  const std::vector<float> log_probs = {-1, -2, -3};
  std::vector<double> sums(2);
  for (const auto& prefixes : {std::vector<int64_t>{0, 1}, {3, 2}, {1, 5}}) {
    EXPECT_THROW(sum_prefixes(log_probs, prefixes, sums), Error);
  }
}

TEST(VisitLogProbs, NamesTheRowOfAForeignToken) {
  const Transformer model(tiny_model(), DeviceConfig(), 3);
  const RowSource rows{5, [](int64_t first, int64_t count, std::span<int64_t> tokens) {
                         for (int64_t i = 0; i < 5 * count; ++i) {
                           tokens[static_cast<size_t>(i)] = first + i / 5 == 300 ? kVocab : 1;
                         }
                       }};
  try {
    visit_log_probs(model, rows, 7, 400, [](const LogProbs&) {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("row 300 "), std::string::npos) << error.what();
  }
  EXPECT_THROW(log_likelihood(model, std::vector<int64_t>{1}), Error);
}

}  // namespace
}  // namespace smalltalk
