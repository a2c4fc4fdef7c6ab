// Merged experts of TorchEngine, on the CPU: against CpuEngine, whose gradients agree with autograd
// in float64 (merged_experts_test.cpp), recorded and resumed. torch_engine_test.cpp has what they
// share with other models.
#include "lm/torch/torch_experts.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lm/model/transformer_impl.hpp"
#include "models_fixture.hpp"
#include "smalltalk/lm/model/row_routing.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "support/temporary_folder.hpp"
#include "trainer_fixtures.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kSequences = 5, kSequenceTokens = 70, kEnd = 5;

ModelConfig in_documents(ModelConfig config) {
  config.document_end = kEnd;
  config.document_mask = true;
  return config;
}

ModelConfig otherwise(ModelConfig config) {
  config.merged_layers = "1";
  config.routing = SegmentRouting::prefix;
  config.first_segment = FirstSegment::uniform;
  return config;
}

// Segments that divide the 69 inputs of a row, in one block and in several; that do not; longer
// than a row; of one token; within documents; and what the paper does otherwise.
class TorchExpertsTest : public testing::TestWithParam<ModelConfig> {};
INSTANTIATE_TEST_SUITE_P(
    Kinds, TorchExpertsTest,
    testing::Values(merging(tiny_model(FeedForward::swiglu, true), 4, 23),
                    merging(tiny_model(FeedForward::relu2, false, 2), 3, 3),
                    merging(tiny_model(FeedForward::swiglu, false, 2), 5, 4),
                    merging(tiny_model(FeedForward::relu2, true, 1), 2, 100),
                    merging(tiny_model(FeedForward::swiglu, true), 1, 1),
                    otherwise(merging(tiny_model(FeedForward::swiglu, true), 4, 8)),
                    in_documents(merging(tiny_model(FeedForward::swiglu, true, 1), 4, 8)),
                    in_documents(merging(tiny_model(FeedForward::relu2, false, 2), 3, 100))));

std::vector<int64_t> some_tokens() {
  std::vector<int64_t> tokens = random_tokens(kSequences * kSequenceTokens, 37, 5);
  std::fill_n(tokens.begin() + 60, 12, kEnd);  // padding, over the end of a row
  return tokens;
}

// But of padding, which is one document here.
void expect_same_routing(const Transformer& cpu, TorchEngine& torch,
                         const std::vector<int64_t>& tokens, double tolerance) {
  const ModelConfig& config = cpu.config();
  const auto found = torch.routing(tokens, kSequences, kSequenceTokens);
  ASSERT_EQ(std::ssize(found), kSequences);
  const RowSource rows{kSequenceTokens, [&](int64_t first, int64_t count, std::span<int64_t> out) {
                         std::copy_n(tokens.begin() + first * kSequenceTokens,
                                     count * kSequenceTokens, out.begin());
                       }};
  visit_routing(cpu, rows, 0, kSequences, [&](int64_t row, const RowRouting& expected) {
    if (config.document_mask && row < 2) return;
    const RowRouting& own = found[static_cast<size_t>(row)];
    ASSERT_EQ(own.segments.size(), expected.segments.size());
    for (size_t s = 0; s < own.segments.size(); ++s) {
      EXPECT_EQ(own.segments[s].begin, expected.segments[s].begin);
      EXPECT_EQ(own.segments[s].first, expected.segments[s].first);
    }
    ASSERT_EQ(own.weights.size(), expected.weights.size());
    for (size_t i = 0; i < own.weights.size(); ++i) {
      EXPECT_NEAR(own.weights[i], expected.weights[i], tolerance) << row << " " << i;
    }
  });
}

// Gradients as a share of their norm, of all and of each parameter.
TEST_P(TorchExpertsTest, AgreesWithTheCpuEngine) {
  const auto tokens = some_tokens();
  Transformer cpu(GetParam(), DeviceConfig(), 3);
  double expected_loss = 0;
  const auto expected = loss_gradients(cpu, tokens, kSequences, kSequenceTokens, &expected_loss);
  constexpr int64_t kTargets = kSequenceTokens - 1;
  const int64_t targets = kSequences * kTargets;
  const std::vector<Merging> mergings = {{}, {.leaky = true}, {.prompt_tokens = 21}, {}};
  std::vector<std::vector<float>> expected_scores;
  for (const Merging& merging : mergings) {
    std::vector<float>& scores = expected_scores.emplace_back(targets);
    const int64_t at_once = cpu.impl().engine->rows_at_once(kSequenceTokens);
    for (int64_t row = 0; row < kSequences; row += at_once) {
      const int64_t rows = std::min(kSequences - row, at_once);
      cpu.impl().engine->compute_log_probs(
          std::span(tokens).subspan(row * kSequenceTokens, rows * kSequenceTokens), rows,
          kSequenceTokens, std::span(scores).subspan(row * kTargets, rows * kTargets), {}, merging);
    }
  }
  for (const auto& [precision, of_gradients, of_scores] :
       {std::tuple<std::string, double, double>("float32", 2e-6, 1e-5),
        {"bf16-mixed", 3e-2, 0.1}}) {
    SCOPED_TRACE(precision);
    Models torch(GetParam(), 1, precision);
    const double loss =
        torch.step(tokens, kSequences, kSequenceTokens, 1.0F / static_cast<float>(targets))[0];
    EXPECT_NEAR(loss / static_cast<double>(targets), expected_loss, of_scores);
    double squares = 0, square = 0;
    for (const ParameterSpec& spec : torch.layout.specs) {
      const at::Tensor own = torch.gradients.narrow(0, spec.offset, spec.size);
      const auto& values = expected.at(spec.name);
      const at::Tensor truth = at::zeros_like(own);
      std::copy(values.begin(), values.end(), truth.data_ptr<float>());
      const double norm = truth.norm().item<double>(), error = (own - truth).norm().item<double>();
      squares += error * error;
      square += norm * norm;
      if (precision == "float32") {
        EXPECT_LE(error, 10 * of_gradients * norm + 1e-7) << spec.name;
      }
    }
    const double error = std::sqrt(squares / square);
    EXPECT_LT(error, of_gradients);
    std::vector<float> scores(targets);
    double farthest = 0;
    for (size_t m = 0; m < mergings.size(); ++m) {
      torch.engine.compute_log_probs(tokens, kSequences, kSequenceTokens, scores, {}, mergings[m]);
      for (size_t i = 0; i < scores.size(); ++i) {
        farthest =
            std::max(farthest, std::abs(static_cast<double>(scores[i] - expected_scores[m][i])));
      }
    }
    EXPECT_LT(farthest, of_scores);
    expect_same_routing(cpu, torch.engine, tokens, precision == "float32" ? 1e-5 : 0.05);
    std::printf("%s: gradients %.1e, scores %.1e\n", precision.c_str(), error, farthest);
  }
}

TEST(TorchExperts, PaddingIsOneDocument) {
  const std::vector<int64_t> tokens = {1, 5, 2, 5, 5, 5, 3, 5,  // a row each
                                       5, 5, 5, 2, 5, 5, 5, 5};
  EXPECT_EQ(document_starts(tokens, 2, 8, true, 5),
            (std::vector<int32_t>{0, 1, 1, 3, 3, 5, 5, 0, 0, 2, 2, 4, 4, 4}));
  EXPECT_EQ(document_starts(tokens, 2, 8, false, 5),
            (std::vector<int32_t>{0, 1, 1, 3, 3, 5, 5, 7, 0, 0, 2, 2, 4, 4, 4, 7}));
}

// On the CPU, where a trainer is given the other engine otherwise.
void compute_by_torch(Transformer& model) {
  Transformer::Impl& impl = model.impl();
  impl.engine = std::make_unique<TorchEngine>(impl.config, impl.layout, at::kCPU, "float32");
  impl.allocate_gradients();  // which binds the engine
}

TEST(TorchExperts, TrainLikeTheCpuEngineAndResume) {
  const TemporaryFolder folder;
  TrainConfig train = small_training(12);
  train.lr = 1e-2;
  train.save_interval = 5;
  const auto trained = [&](const ModelConfig& config, const std::string& name, bool by_torch,
                           std::vector<int64_t> stops, Recompute recompute) {
    train.recompute = recompute;
    std::pair<std::vector<float>, double> result;
    for (const int64_t stop : stops) {
      Transformer model(config, DeviceConfig(), 1);
      if (by_torch) compute_by_torch(model);
      Trainer trainer(model, train, quiet(folder.path() / name));
      trainer.resume();
      const double loss = trainer.run(random_rows(25, 37), stop).last_loss;
      result = {model.weights(), loss};
    }
    return result;
  };
  const ModelConfig config = merging(tiny_model(FeedForward::relu2, true, 2), 4, 8);
  for (const ModelConfig& each : {config, in_documents(config)}) {
    const std::string name = each.document_mask ? "documents-" : "";
    const auto whole = trained(each, name + "whole", true, {12}, Recompute::none);
    EXPECT_EQ(trained(each, name + "cut", true, {6, 12}, Recompute::full), whole);
    EXPECT_NEAR(trained(each, name + "cpu", false, {12}, Recompute::none).second, whole.second,
                1e-4);
  }
}

}  // namespace
}  // namespace smalltalk
