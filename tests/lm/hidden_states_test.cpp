// Hidden states, read off the logits of a model whose output projection is the identity.
#include "smalltalk/lm/model/hidden_states.hpp"

#include <gtest/gtest.h>

#include "fixtures.hpp"
#include "models_fixture.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kRows = 9, kRowTokens = 23;

// Of 16 numbers, the first tokens' logits.
ModelConfig config_of(bool merges) {
  const ModelConfig config = tiny_model(FeedForward::swiglu, /*tied=*/false, 2);
  return merges ? merging(config, 3, 5) : config;
}

void set_identity(const ParameterLayout& layout, int64_t hidden, float* weights) {
  std::fill_n(weights + layout.head, 37 * hidden, 0.0F);
  for (int64_t i = 0; i < hidden; ++i) weights[layout.head + i * (hidden + 1)] = 1;
}

std::vector<int64_t> lengths() { return {22, 1, 7, 0, 22, 13, 21, 2, 16}; }

// [rows, H] from logits [rows, tokens, V]
std::vector<double> sums_of(std::span<const float> logits, int64_t hidden) {
  std::vector<double> sums(static_cast<size_t>(kRows * hidden));
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t t = 0; t < lengths()[static_cast<size_t>(row)]; ++t) {
      for (int64_t h = 0; h < hidden; ++h) {
        sums[static_cast<size_t>(row * hidden + h)] +=
            logits[static_cast<size_t>((row * kRowTokens + t) * 37 + h)];
      }
    }
  }
  return sums;
}

TEST(HiddenStates, AreWhatTheOutputProjectionReads) {
  for (const bool merges : {false, true}) {
    for (const int64_t threads : {1, 3}) {
      DeviceConfig device;
      device.threads = threads;
      Transformer model(config_of(merges), device, 1);
      const int64_t hidden = model.config().hidden_size;
      std::vector<float> weights = model.weights();
      set_identity(parameter_layout(model.config()), hidden, weights.data());
      model.set_weights(weights);
      const std::vector<int64_t> tokens = random_tokens(kRows * kRowTokens, 37, 5);
      const std::vector<double> truth = sums_of(model.logits(tokens, kRows, kRowTokens), hidden);
      const auto ask = [&](const std::vector<int64_t>& of) {
        std::vector<double> sums;
        const RowSource rows{kRowTokens, [&](int64_t first, int64_t count, std::span<int64_t> out) {
                               std::copy_n(of.begin() + first * kRowTokens, count * kRowTokens,
                                           out.begin());
                             }};
        visit_hidden_sums(model, rows, lengths(), [&](int64_t row, std::span<const double> sum) {
          EXPECT_EQ(row * hidden, std::ssize(sums));
          sums.insert(sums.end(), sum.begin(), sum.end());
        });
        return sums;
      };
      const std::vector<double> sums = ask(tokens);
      ASSERT_EQ(sums.size(), truth.size());
      for (size_t i = 0; i < sums.size(); ++i) EXPECT_NEAR(sums[i], truth[i], 1e-4) << i;
      // What is behind a row's length changes nothing.
      std::vector<int64_t> other = tokens;
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t t = lengths()[static_cast<size_t>(row)]; t < kRowTokens; ++t) {
          other[static_cast<size_t>(row * kRowTokens + t)] = 3;
        }
      }
      EXPECT_EQ(ask(other), sums);
    }
  }
}

TEST(HiddenStates, OfBothEnginesAreTheSame) {
  for (const bool merges : {false, true}) {
    Models models(config_of(merges));
    const int64_t hidden = models.config.hidden_size;
    set_identity(models.layout, hidden, models.parameters.data_ptr<float>());
    const std::vector<int64_t> tokens = random_tokens(kRows * kRowTokens, 37, 5);
    std::vector<float> logits(kRows * kRowTokens * 37);
    models.engine.logits(tokens, kRows, kRowTokens, logits);
    const std::vector<double> truth = sums_of(logits, hidden);
    std::vector<double> sums(truth.size());
    models.engine.sum_hidden_states(tokens, kRows, kRowTokens, lengths(), sums);
    for (size_t i = 0; i < sums.size(); ++i) EXPECT_NEAR(sums[i], truth[i], 1e-4) << i;
  }
}

}  // namespace
}  // namespace smalltalk
