// The model: gradients against finite differences, the two engines against each other, folders.
#include "smalltalk/lm/model/transformer.hpp"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <thread>

#include "fixtures.hpp"
#include "lm/cpu/cpu_pass.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/torch_engine.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

class ModelTest : public testing::TestWithParam<ModelConfig> {};

// Attention within documents, which end at every 37th token or so.
ModelConfig of_documents(ModelConfig config) {
  config.document_end = 5;
  config.document_mask = true;
  return config;
}

// Feed-forwards merged from experts, whose scores are those of training.
ModelConfig of_experts(ModelConfig config) {
  config.merged_experts = 3;
  config.segment_tokens = 4;
  config.first_segment = FirstSegment::uniform;
  return config;
}

INSTANTIATE_TEST_SUITE_P(Kinds, ModelTest,
                         testing::Values(tiny_model(FeedForward::swiglu, true),
                                         tiny_model(FeedForward::swiglu, false, 2),
                                         tiny_model(FeedForward::relu2, true, 1),
                                         of_documents(tiny_model(FeedForward::swiglu, true)),
                                         of_documents(tiny_model(FeedForward::relu2, false, 2)),
                                         of_experts(tiny_model(FeedForward::swiglu, true)),
                                         of_experts(tiny_model(FeedForward::relu2, false, 2))));

double mean_loss(const Transformer& model, const std::vector<int64_t>& tokens, int64_t rows) {
  const auto row_tokens = static_cast<int64_t>(tokens.size()) / rows;
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row) {
    sum -= log_likelihood(model, std::span(tokens).subspan(row * row_tokens, row_tokens));
  }
  return sum / static_cast<double>(rows * (row_tokens - 1));
}

// The derivative along the gradient's own direction is its norm: one number that every parameter
// takes part in, so float32 losses resolve it.
TEST_P(ModelTest, GradientsAgreeWithFiniteDifferences) {
  Transformer model(GetParam(), DeviceConfig(), 3);
  const std::vector<int64_t> tokens = random_tokens(3 * 11, 37, 5);
  double loss = 0;
  const auto gradients = loss_gradients(model, tokens, 3, 11, &loss);
  EXPECT_NEAR(loss, mean_loss(model, tokens, 3), 1e-5);
  for (const ParameterSpec& spec : model.impl().layout.specs) {
    const std::vector<float>& gradient = gradients.at(spec.name);
    double square = 0;
    for (float value : gradient) square += static_cast<double>(value) * value;
    const double norm = std::sqrt(square);
    ASSERT_GT(norm, 1e-5) << spec.name;
    const std::span<const float> there = model.parameters().at(spec.name);
    const std::vector<float> original(there.begin(), there.end());
    const auto loss_at = [&](double distance) {
      std::vector<float> moved = original;
      for (size_t i = 0; i < moved.size(); ++i) {
        moved[i] += static_cast<float>(distance * gradient[i] / norm);
      }
      model.impl().set_parameter(spec, moved);
      return mean_loss(model, tokens, 3);
    };
    const double step = 2e-2;
    // Fourth-order central difference.
    const double derivative =
        (8 * (loss_at(step) - loss_at(-step)) - (loss_at(2 * step) - loss_at(-2 * step))) /
        (12 * step);
    model.impl().set_parameter(spec, original);
    EXPECT_NEAR(derivative, norm, 1e-2 * norm + 2e-5) << spec.name;
  }
}

TEST_P(ModelTest, EnginesAgree) {
  Transformer model(GetParam(), DeviceConfig(), 3);
  std::vector<int64_t> tokens = random_tokens(5 * 70, 37, 5);  // two blocks of queries
  std::fill_n(tokens.begin() + 60, 10, 5);                     // padding, of documents
  const auto expected = loss_gradients(model, tokens, 5, 70, nullptr);
  const std::vector<float> logits = model.logits(tokens, 5, 70);

  Transformer::Impl& impl = model.impl();
  TorchEngine torch(impl.config, impl.layout, at::kCPU, "float32");
  at::Tensor gradients = at::zeros_like(impl.parameters);
  ModelBuffers buffers;
  buffers.parameters = impl.parameters.data_ptr<float>();
  buffers.gradients = gradients.data_ptr<float>();
  torch.rebind(buffers);
  torch.accumulate_gradients(tokens, 5, 70, 1.0F / (5 * 69), {});
  for (Engine* engine : {static_cast<Engine*>(&torch), impl.engine.get()}) {
    EXPECT_GT(engine->seconds().forward, 0);
    EXPECT_GT(engine->seconds().backward, 0);
  }
  for (const ParameterSpec& spec : impl.layout.specs) {
    const float* values = gradients.data_ptr<float>() + spec.offset;
    for (int64_t i = 0; i < spec.size; ++i) {
      ASSERT_NEAR(values[i], expected.at(spec.name)[static_cast<size_t>(i)], 2e-5) << spec.name;
    }
  }
  std::vector<float> torch_logits(logits.size());
  torch.logits(tokens, 5, 70, torch_logits);
  for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(torch_logits[i], logits[i], 1e-4);
}

TEST_P(ModelTest, RecomputationGivesTheSameBits) {
  DeviceConfig two_threads;
  two_threads.threads = 2;
  Transformer model(GetParam(), two_threads, 3);
  const std::vector<int64_t> tokens = random_tokens(5 * 70, 37, 5);
  const auto expected = loss_gradients(model, tokens, 5, 70, nullptr);
  int64_t memory = INT64_MAX;
  for (const auto& [recompute, keep] : {std::pair(Recompute::none, Keep::everything),
                                        {Recompute::selective, Keep::products},
                                        {Recompute::full, Keep::inputs}}) {
    model.impl().engine->begin_training({recompute});
    EXPECT_EQ(loss_gradients(model, tokens, 5, 70, nullptr), expected) << to_string(recompute);
    const int64_t floats = CpuPass::memory_floats(model.config(), 1, 69, keep);
    EXPECT_LT(floats, memory);
    memory = floats;
  }
}

TEST_P(ModelTest, FolderRoundTrip) {
  const TemporaryFolder folder;
  const Transformer model(GetParam(), DeviceConfig(), 3);
  model.save(folder.path() / "m", {{"smalltalk.seq_length", "128"}});
  const Transformer loaded = Transformer::load(folder.path() / "m", DeviceConfig());
  EXPECT_EQ(loaded.num_parameters(), model.num_parameters());
  EXPECT_EQ(loaded.num_parameters(), parameter_count(model.config()));
  const auto expected = model.parameters(), values = loaded.parameters();
  for (const auto& [name, span] : expected) {
    EXPECT_TRUE(std::ranges::equal(span, values.at(name))) << name;
  }
  EXPECT_NE(read_text(folder.path() / "m/config.json").find("\"max_position_embeddings\": 128"),
            std::string::npos);
}

TEST(TransformerTest, LoadNamesWhatIsWrong) {
  const TemporaryFolder folder;
  EXPECT_THROW(Transformer::load(folder.path(), DeviceConfig()), Error);
  const Transformer model(tiny_model(), DeviceConfig(), 3);
  model.save(folder.path(), {});
  std::string config = read_text(folder.path() / "config.json");
  config.replace(config.find("\"vocab_size\": 37"), 16, "\"vocab_size\": 38");
  write_text_atomically(folder.path() / "config.json", config);
  try {
    Transformer::load(folder.path(), DeviceConfig());
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("embed_tokens"), std::string::npos);
  }
}

TEST(TransformerTest, InitialWeightsAreNormal) {
  ModelConfig config = tiny_model();
  config.vocab_size = 2000;
  const Transformer model(config, DeviceConfig(), 3), same(config, DeviceConfig(), 3);
  const Transformer other(config, DeviceConfig(), 4);
  const auto moments = [](std::span<const float> values) {
    double sum = 0, square = 0;
    for (float value : values) sum += value;
    for (float value : values) square += static_cast<double>(value) * value;
    const auto n = static_cast<double>(values.size());
    return std::pair(sum / n, std::sqrt(square / n));
  };
  const auto parameters = model.parameters();
  const auto [mean, deviation] = moments(parameters.at("model.embed_tokens.weight"));
  EXPECT_NEAR(mean, 0, 5e-3);
  EXPECT_NEAR(deviation, 0.2, 5e-3);
  EXPECT_NEAR(moments(parameters.at("model.layers.1.mlp.down_proj.weight")).second, 0.1, 1e-2);
  EXPECT_EQ(moments(parameters.at("model.norm.weight")).first, 1);
  for (const auto& [name, span] : parameters) {
    EXPECT_TRUE(std::ranges::equal(span, same.parameters().at(name))) << name;
  }
  EXPECT_NE(parameters.at("model.embed_tokens.weight")[0],
            other.parameters().at("model.embed_tokens.weight")[0]);
}

TEST(TransformerTest, RefusesImpossibleShapes) {
  ModelConfig odd = tiny_model();
  odd.num_heads = 3;
  EXPECT_THROW(Transformer(odd, DeviceConfig(), 1), Error);
  DeviceConfig half;
  half.precision = "bf16-mixed";
  EXPECT_THROW(Transformer(tiny_model(), half, 1), Error);
}

}  // namespace
}  // namespace smalltalk
