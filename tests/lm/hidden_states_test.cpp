// Sums of hidden states against the logits of a model whose output projection hands them through,
// of rows without padding; of both engines, and to the bit for every way to ask for them.
#include "smalltalk/lm/model/hidden_states.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "fixtures.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/torch_engine.hpp"
#include "support/complaint.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kVocab = 37, kHidden = 16, kRowTokens = 33;

ModelConfig of_documents(ModelConfig config) {
  config.document_end = 5;
  config.document_mask = true;
  return config;
}

ModelConfig by_the_prefix(ModelConfig config) {
  config.routing = SegmentRouting::prefix;
  return config;
}

class HiddenStatesTest : public testing::TestWithParam<ModelConfig> {
 protected:
  // Logit h of each token is number h of its hidden state, for h < H.
  Transformer model(int64_t threads = 1) const {
    DeviceConfig device;
    device.threads = threads;
    Transformer model(GetParam(), device, 3);
    std::vector<float> head(kVocab * kHidden);
    for (int64_t h = 0; h < kHidden; ++h) head[static_cast<size_t>(h * kHidden + h)] = 1;
    for (const ParameterSpec& spec : model.impl().layout.specs) {
      if (spec.name == "lm_head.weight") model.impl().set_parameter(spec, head);
    }
    return model;
  }
};

INSTANTIATE_TEST_SUITE_P(
    Kinds, HiddenStatesTest,
    testing::Values(tiny_model(FeedForward::swiglu, false, 2),
                    tiny_model(FeedForward::relu2, false),
                    of_documents(tiny_model(FeedForward::swiglu, false)),
                    merging(tiny_model(FeedForward::swiglu, false, 1), 3, 4),
                    by_the_prefix(merging(tiny_model(FeedForward::relu2, false), 3, 4)),
                    of_documents(merging(tiny_model(FeedForward::swiglu, false), 3, 4))));

// Of any number from none to all that a row has, the last one excepted.
std::vector<int64_t> some_lengths(int64_t rows) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < rows; ++i) lengths.push_back(i * 7 % kRowTokens);
  return lengths;
}

// [rows, H]
std::vector<double> sums_of(const Transformer& model, const RowSource& rows,
                            const std::vector<int64_t>& lengths) {
  std::vector<double> sums;
  visit_hidden_sums(model, rows, lengths, [&](int64_t row, std::span<const double> sum) {
    EXPECT_EQ(std::ssize(sums), row * kHidden);
    sums.insert(sums.end(), sum.begin(), sum.end());
  });
  EXPECT_EQ(std::ssize(sums), std::ssize(lengths) * kHidden);
  return sums;
}

TEST_P(HiddenStatesTest, SumsAreThoseOfRowsThatEndThere) {
  const Transformer model = this->model(2);
  const RowSource rows = random_rows(kRowTokens, kVocab);
  const std::vector<int64_t> lengths = some_lengths(70);  // more than two threads take at once
  const auto count = std::ssize(lengths);
  const std::vector<double> sums = sums_of(model, rows, lengths);
  std::vector<int64_t> tokens(static_cast<size_t>(count * kRowTokens));
  rows.read(0, count, tokens);

  const Transformer::Impl& impl = model.impl();
  TorchEngine torch(impl.config, impl.layout, at::kCPU, "float32");
  ModelBuffers buffers;
  buffers.parameters = impl.parameters.data_ptr<float>();
  torch.rebind(buffers);
  std::vector<double> of_torch(sums.size());
  torch.sum_hidden_states(tokens, count, kRowTokens, lengths, of_torch);

  for (int64_t row = 0; row < count; ++row) {
    const int64_t length = lengths[static_cast<size_t>(row)];
    std::vector<double> expected(kHidden);
    if (length > 0) {
      const auto text = std::span(tokens).subspan(static_cast<size_t>(row * kRowTokens),
                                                  static_cast<size_t>(length));
      const std::vector<float> logits = model.logits(text, 1, length);
      for (int64_t i = 0; i < length * kHidden; ++i) {
        expected[static_cast<size_t>(i % kHidden)] +=
            logits[static_cast<size_t>(i / kHidden * kVocab + i % kHidden)];
      }
    }
    for (int64_t h = 0; h < kHidden; ++h) {
      const auto i = static_cast<size_t>(row * kHidden + h);
      ASSERT_NEAR(sums[i], expected[static_cast<size_t>(h)], 1e-4) << "row " << row;
      ASSERT_NEAR(of_torch[i], expected[static_cast<size_t>(h)], 1e-4) << "row " << row;
    }
  }
}

TEST_P(HiddenStatesTest, ARowsBitsAreItsOwn) {
  const RowSource rows = random_rows(kRowTokens, kVocab);
  const std::vector<int64_t> lengths = some_lengths(70);
  const std::vector<double> all = sums_of(model(), rows, lengths);
  for (const int64_t threads : {2, 4}) EXPECT_EQ(sums_of(model(threads), rows, lengths), all);
  for (const int64_t first : {1, 31, 69}) {
    const RowSource later{kRowTokens, [&](int64_t row, int64_t count, std::span<int64_t> tokens) {
                            rows.read(first + row, count, tokens);
                          }};
    EXPECT_EQ(sums_of(model(2), later, {lengths.begin() + first, lengths.end()}),
              std::vector<double>(all.begin() + first * kHidden, all.end()));
  }
  const RowSource padded{kRowTokens, [&](int64_t row, int64_t count, std::span<int64_t> tokens) {
                           rows.read(row, count, tokens);
                           for (int64_t i = 0; i < count; ++i) {
                             const auto line = tokens.subspan(static_cast<size_t>(i * kRowTokens),
                                                              static_cast<size_t>(kRowTokens));
                             const int64_t length = lengths[static_cast<size_t>(row + i)];
                             std::ranges::fill(line.subspan(static_cast<size_t>(length)), 0);
                           }
                         }};
  EXPECT_EQ(sums_of(model(), padded, lengths), all);
}

TEST(VisitHiddenSums, NamesWhatIsWrong) {
  const Transformer model(tiny_model(), DeviceConfig(), 3);
  const auto ignore = [](int64_t, std::span<const double>) {};
  const RowSource foreign{5, [](int64_t first, int64_t count, std::span<int64_t> tokens) {
                            for (int64_t i = 0; i < 5 * count; ++i) {
                              tokens[static_cast<size_t>(i)] = first + i / 5 == 300 ? kVocab : 1;
                            }
                          }};
  const auto complaint = [&](const RowSource& rows, const std::vector<int64_t>& lengths) {
    return complaint_of([&] { visit_hidden_sums(model, rows, lengths, ignore); });
  };
  EXPECT_TRUE(mentions(complaint(foreign, std::vector<int64_t>(400, 4)), "row 300 "));
  EXPECT_TRUE(mentions(complaint(random_rows(1, kVocab), {0}), "at least 2 tokens"));
  EXPECT_NE(complaint(random_rows(5, kVocab), {5}), "");
}

}  // namespace
}  // namespace smalltalk
