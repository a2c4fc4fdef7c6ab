// What TorchEngine does beyond CpuEngine (transformer_test.cpp compares the two): gradients
// announced layer by layer, recomputation, several models as one. All on the CPU.
#include "lm/torch/torch_engine.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fixtures.hpp"
#include "smalltalk/lm/train/memory.hpp"

namespace smalltalk {
namespace {

// R models of one configuration with different weights, in one flat buffer.
struct Models {
  explicit Models(const ModelConfig& model, int64_t count = 1,
                  const std::string& precision = "float32")
      : config(model.resolved()),
        layout(parameter_layout(config)),
        parameters(at::zeros({count * layout.total})),
        gradients(at::zeros_like(parameters)),
        engine(config, layout, parameters, precision, count) {
    for (int64_t r = 0; r < count; ++r) {
      for (const ParameterSpec& spec : layout.specs) {
        init_parameter(spec, static_cast<uint64_t>(3 + r),
                       weights() + r * layout.total + spec.offset);
      }
    }
    engine.rebind(weights(), gradients.data_ptr<float>());
  }
  float* weights() { return parameters.data_ptr<float>(); }

  ModelConfig config;
  ParameterLayout layout;
  at::Tensor parameters, gradients;
  TorchEngine engine;
};

constexpr int64_t kRows = 3, kRowTokens = 21;

std::vector<int64_t> some_tokens(uint64_t seed) {
  return random_tokens(kRows * kRowTokens, 37, seed);
}

class TorchEngineTest : public testing::TestWithParam<ModelConfig> {};

INSTANTIATE_TEST_SUITE_P(Kinds, TorchEngineTest,
                         testing::Values(tiny_model(FeedForward::swiglu, true),
                                         tiny_model(FeedForward::swiglu, false, 2),
                                         tiny_model(FeedForward::relu2, true, 1)));

TEST_P(TorchEngineTest, NamesEveryGradientOnceWhenItIsFinal) {
  for (const int64_t count : {1, 2}) {
    Models models(GetParam(), count);
    std::vector<int64_t> tokens = some_tokens(5);
    for (int64_t r = 1; r < count; ++r) {
      const auto more = some_tokens(6);
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
    const float* gradients = models.gradients.const_data_ptr<float>();
    std::vector<int> named(static_cast<size_t>(models.gradients.numel()));
    std::vector<float> when_named(named.size());
    int calls = 0;
    models.engine.accumulate_gradients(tokens, kRows, kRowTokens, 1,
                                       [&](int64_t begin, int64_t end) {
                                         ++calls;
                                         for (int64_t i = begin; i < end; ++i) {
                                           ++named[i];
                                           when_named[i] = gradients[i];
                                         }
                                       });
    // Head if it is not the embedding, layers, norms, embedding.
    EXPECT_EQ(calls, count * (GetParam().num_layers + (GetParam().tie_embeddings ? 2 : 3)));
    for (size_t i = 0; i < named.size(); ++i) {
      ASSERT_EQ(named[i], 1) << i;
      ASSERT_EQ(when_named[i], gradients[i]) << i;
    }
  }
}

TEST_P(TorchEngineTest, RecomputationChangesNoBit) {
  for (const std::string precision : {"float32", "bf16-mixed"}) {
    Models models(GetParam(), 1, precision);
    std::vector<at::Tensor> gradients;
    std::vector<double> losses;
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      models.engine.set_recompute(recompute);
      models.gradients.zero_();
      losses.push_back(
          models.engine.accumulate_gradients(some_tokens(5), kRows, kRowTokens, 0.01F, {})[0]);
      gradients.push_back(models.gradients.clone());
    }
    EXPECT_GT(gradients[0].norm().item<double>(), 0);
    for (int i = 1; i < 3; ++i) {
      EXPECT_TRUE(gradients[i].equal(gradients[0]));
      EXPECT_EQ(losses[i], losses[0]);
    }
  }
}

// Counts the bytes of CPU tensors while it lives.
class CountingAllocator : public c10::Allocator {
 public:
  CountingAllocator() : before_(c10::GetCPUAllocator()) { c10::SetCPUAllocator(this, kPriority); }
  ~CountingAllocator() override { c10::SetCPUAllocator(before_, kPriority); }

  c10::DataPtr allocate(size_t bytes) override {
    bytes_ += bytes;
    peak_ = std::max(peak_, bytes_);
    auto* block = new Block{before_->allocate(bytes), bytes};
    return {block->data.get(), block, &free_block, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  static double peak_over_now(const std::function<void()>& work) {
    const size_t now = bytes_;
    peak_ = now;
    work();
    return static_cast<double>(peak_ - now);
  }

 private:
  static constexpr uint8_t kPriority = 1;
  struct Block {
    c10::DataPtr data;
    size_t bytes;
  };
  static void free_block(void* block) {
    bytes_ -= static_cast<Block*>(block)->bytes;
    delete static_cast<Block*>(block);
  }
  static inline size_t bytes_ = 0, peak_ = 0;
  c10::Allocator* before_;
};

TEST(TorchEngineOnceTest, RecomputationSavesMemory) {
  ModelConfig config = tiny_model();
  config.num_layers = 8;
  config.hidden_size = 64;
  config.intermediate_size = 160;
  Models models(config);
  const auto tokens = random_tokens(8 * 65, 37, 5);
  std::vector<double> peaks;
  CountingAllocator allocator;
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    models.engine.set_recompute(recompute);
    peaks.push_back(CountingAllocator::peak_over_now(
        [&] { models.engine.accumulate_gradients(tokens, 8, 65, 1, {}); }));
  }
  // On the CPU the engine's float32 tensors are those of a GPU.
  DeviceConfig gpu;
  gpu.device = "cuda";
  for (size_t i = 0; i < 3; ++i) {
    TrainConfig train;
    train.batch_size = 8;
    train.recompute = static_cast<Recompute>(i);
    const MemoryEstimate predicted = predicted_memory(config, train, gpu, 64, 1);
    EXPECT_NEAR((predicted.activations + predicted.loss) / peaks[i], 1, 0.15)
        << i << " " << peaks[i];
  }
  EXPECT_LT(peaks[1], 0.6 * peaks[0]);
  EXPECT_LT(peaks[2], 0.5 * peaks[1]);
}

// Losses, gradients and scores of R models in one equal those of R single ones.
TEST_P(TorchEngineTest, SeveralModelsComputeAsOne) {
  constexpr int64_t kModels = 3;
  Models all(GetParam(), kModels);
  std::vector<int64_t> tokens;
  for (int64_t r = 0; r < kModels; ++r) {
    const auto part = some_tokens(5 + r);
    tokens.insert(tokens.end(), part.begin(), part.end());
  }
  const auto shared = some_tokens(50);
  const std::vector<double> losses =
      all.engine.accumulate_gradients(tokens, kRows, kRowTokens, 0.01F, {});
  const int64_t scores = kRows * (kRowTokens - 1), logit_count = kRows * kRowTokens * 37;
  std::vector<float> log_probs(kModels * scores), logits(kModels * logit_count);
  all.engine.compute_log_probs(shared, kRows, kRowTokens, log_probs, {});
  all.engine.logits(shared, kRows, kRowTokens, logits);

  for (int64_t r = 0; r < kModels; ++r) {
    Models one(GetParam());
    const int64_t total = one.layout.total;
    one.parameters.copy_(all.parameters.narrow(0, r * total, total));
    const auto own = std::span(tokens).subspan(r * kRows * kRowTokens, kRows * kRowTokens);
    const double loss = one.engine.accumulate_gradients(own, kRows, kRowTokens, 0.01F, {})[0];
    EXPECT_NEAR(losses[r], loss, 1e-5 * loss);
    const at::Tensor gradients = all.gradients.narrow(0, r * total, total);
    EXPECT_LT((gradients - one.gradients).norm().item<double>(),
              1e-5 * one.gradients.norm().item<double>());
    std::vector<float> one_log_probs(scores), one_logits(logit_count);
    one.engine.compute_log_probs(shared, kRows, kRowTokens, one_log_probs, {});
    one.engine.logits(shared, kRows, kRowTokens, one_logits);
    for (int64_t i = 0; i < scores; ++i) {
      ASSERT_NEAR(log_probs[r * scores + i], one_log_probs[i], 1e-4);
    }
    for (int64_t i = 0; i < logit_count; ++i) {
      ASSERT_NEAR(logits[r * logit_count + i], one_logits[i], 1e-4);
    }
  }
}

// However many rows there are: what is filled up is not seen.
TEST_P(TorchEngineTest, ARowsBitsAreItsOwn) {
  Models models(GetParam(), 2);
  const int64_t at_once = models.engine.rows_at_once(kRowTokens), length = kRowTokens - 1;
  const std::vector<int64_t> tokens = random_tokens(at_once * kRowTokens, 37, 5);
  std::vector<float> all(2 * at_once * length), some(2 * kRows * length);
  models.engine.compute_log_probs(tokens, at_once, kRowTokens, all, {});
  for (const int64_t first : {int64_t{0}, int64_t{7}, at_once - kRows}) {
    models.engine.compute_log_probs(
        std::span(tokens).subspan(first * kRowTokens, kRows * kRowTokens), kRows, kRowTokens, some,
        {});
    for (int64_t r = 0; r < 2; ++r) {
      const auto part = std::span(some).subspan(r * kRows * length, kRows * length);
      EXPECT_TRUE(
          std::equal(part.begin(), part.end(), all.begin() + (r * at_once + first) * length))
          << first << " " << r;
    }
  }
}

}  // namespace
}  // namespace smalltalk
