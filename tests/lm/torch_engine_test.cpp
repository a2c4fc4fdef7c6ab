// What TorchEngine does beyond CpuEngine (transformer_test.cpp compares the two): gradients
// announced layer by layer, recomputation, several models as one. All on the CPU.
#include "lm/torch/torch_engine.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "counting_allocator.hpp"
#include "lm/torch/block_bytes.hpp"
#include "lm/torch/device_peak.hpp"
#include "models_fixture.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/train/memory.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kRows = 3, kRowTokens = 21;

std::vector<int64_t> some_tokens(uint64_t seed) {
  return random_tokens(kRows * kRowTokens, 37, seed);
}

ModelConfig with_documents(ModelConfig config) {
  config.document_end = 5;
  config.document_mask = true;
  return config;
}

class TorchEngineTest : public testing::TestWithParam<ModelConfig> {};

INSTANTIATE_TEST_SUITE_P(Kinds, TorchEngineTest,
                         testing::Values(tiny_model(FeedForward::swiglu, true),
                                         tiny_model(FeedForward::swiglu, false, 2),
                                         tiny_model(FeedForward::relu2, true, 1),
                                         merging(tiny_model(FeedForward::swiglu, true, 2), 4, 5),
                                         merging(tiny_model(FeedForward::relu2, false), 3, 6),
                                         with_documents(merging(tiny_model(), 3, 4))));

// Models that merge experts are never several.
int64_t at_most(int64_t models, const ModelConfig& config) {
  return config.merges_experts() ? 1 : models;
}

TEST_P(TorchEngineTest, NamesEveryGradientOnceWhenItIsFinal) {
  for (int64_t count = 1; count <= at_most(2, GetParam()); ++count) {
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
    models.engine.begin_training({Recompute::none, true});
    Exchange exchange;
    exchange.ready = [&](int64_t begin, int64_t end) {
      ++calls;
      for (int64_t i = begin; i < end; ++i) {
        ++named[i];
        when_named[i] = gradients[i];
      }
    };
    models.step(tokens, kRows, kRowTokens, 1, exchange);
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
      models.engine.begin_training({recompute});
      models.gradients.zero_();
      losses.push_back(models.step(some_tokens(5), kRows, kRowTokens, 0.01F)[0]);
      gradients.push_back(models.gradients.clone());
    }
    EXPECT_GT(gradients[0].norm().item<double>(), 0);
    for (int i = 1; i < 3; ++i) {
      EXPECT_TRUE(gradients[i].equal(gradients[0]));
      EXPECT_EQ(losses[i], losses[0]);
    }
  }
}

// A graph that keeps what it was recorded from.
class ClosureGraph : public DeviceGraph {
 public:
  static inline int made = 0, recorded = 0, replayed = 0;

  ClosureGraph() { ++made; }
  void run(const std::function<void()>& work) override {
    if (runs_ == 1) {
      kept_ = work;
      ++recorded;
    }
    if (runs_ > 1) ++replayed;
    runs_ == 0 ? work() : kept_();
    ++runs_;
  }

 private:
  std::function<void()> kept_;
  int runs_ = 0;
};

// As the rounds of the EM do: train, score with other shapes, begin again. A shape is recorded
// once.
TEST(TorchEngineOnceTest, ARecordedStepStaysRecorded) {
  Models recorded(tiny_model(), 2), plain(tiny_model(), 2);
  recorded.engine.record_with([](const DeviceGraph*) { return std::make_unique<ClosureGraph>(); });
  for (uint64_t round = 0; round < 100; ++round) {
    for (Models* models : {&recorded, &plain})
      models->engine.begin_training({Recompute::selective});
    for (uint64_t step = 0; step < 2; ++step) {
      const auto tokens = random_tokens(2 * kRows * kRowTokens, 37, 2 * round + step);
      const auto expected = plain.step(tokens, kRows, kRowTokens, 0.1F);
      EXPECT_EQ(recorded.step(tokens, kRows, kRowTokens, 0.1F), expected);
    }
    ASSERT_TRUE(recorded.gradients.equal(plain.gradients)) << round;
    for (Models* models : {&recorded, &plain}) {
      models->parameters.add_(models->gradients, -0.01);
      models->copy_again();
      models->gradients.zero_();
    }
    if (round % 25 != 0) continue;
    std::vector<float> log_probs(2 * 2 * 8), expected(log_probs.size());
    std::vector<uint8_t> greedy(log_probs.size()), expected_greedy(log_probs.size());
    const auto tokens = random_tokens(2 * 9, 37, round);
    recorded.engine.compute_log_probs(tokens, 2, 9, log_probs, greedy);
    plain.engine.compute_log_probs(tokens, 2, 9, expected, expected_greedy);
    EXPECT_EQ(log_probs, expected);
    EXPECT_EQ(greedy, expected_greedy);
  }
  EXPECT_EQ(ClosureGraph::made, 2 + 1);  // forward and backward; scores
  EXPECT_EQ(ClosureGraph::recorded, 2 + 1);
  EXPECT_EQ(ClosureGraph::replayed, 2 * (200 - 2) + 4 - 2);
  // Another shape takes their place; a group, which announces, records nothing.
  const auto tokens = random_tokens(2 * 2 * 9, 37, 1);
  for (int i = 0; i < 3; ++i) recorded.step(tokens, 2, 9, 0.1F);
  EXPECT_EQ(ClosureGraph::made, 5);
  EXPECT_EQ(ClosureGraph::recorded, 5);
  recorded.engine.begin_training({Recompute::none, true});
  for (int i = 0; i < 3; ++i) recorded.step(tokens, 2, 9, 0.1F);
  EXPECT_EQ(ClosureGraph::made, 5);
}

// Merged experts, too, unless documents cut the segments.
TEST(TorchEngineOnceTest, SegmentsOfTheSameShapeAreRecorded) {
  const ModelConfig config = merging(tiny_model(), 4, 8);
  for (const bool cut : {false, true}) {
    Models recorded(cut ? with_documents(config) : config), plain(recorded.config);
    const int before = ClosureGraph::recorded;
    recorded.engine.record_with(
        [](const DeviceGraph*) { return std::make_unique<ClosureGraph>(); });
    for (uint64_t step = 0; step < 4; ++step) {
      const std::vector<int64_t> tokens = some_tokens(step);
      EXPECT_EQ(recorded.step(tokens, kRows, kRowTokens, 0.1F),
                plain.step(tokens, kRows, kRowTokens, 0.1F));
      EXPECT_TRUE(recorded.gradients.equal(plain.gradients));
      std::vector<float> log_probs(kRows * (kRowTokens - 1)), expected(log_probs.size());
      recorded.engine.compute_log_probs(tokens, kRows, kRowTokens, log_probs, {});
      plain.engine.compute_log_probs(tokens, kRows, kRowTokens, expected, {});
      EXPECT_EQ(log_probs, expected);
    }
    EXPECT_EQ(ClosureGraph::recorded - before, cut ? 0 : 3);
  }
}

// In a group parameters arrive while others are computed with.
TEST_P(TorchEngineTest, ReadsNoParameterBeforeItHasArrived) {
  for (const std::string precision : {"float32", "bf16-mixed"}) {
    Models whole(GetParam(), 1, precision), late(GetParam(), 1, precision);
    whole.engine.begin_training({Recompute::none, true});
    late.engine.begin_training({Recompute::none, true});
    const auto expected = whole.step(some_tokens(5), kRows, kRowTokens, 0.01F);
    // Each is NaN until it is asked for.
    late.parameters.fill_(NAN);
    late.copy_again();
    int64_t asked = 0;
    Exchange exchange;
    exchange.needed = [&](int64_t begin, int64_t end) {
      asked += end - begin;
      late.parameters.narrow(0, begin, end - begin)
          .copy_(whole.parameters.narrow(0, begin, end - begin));
      late.copy_again();
    };
    EXPECT_EQ(late.step(some_tokens(5), kRows, kRowTokens, 0.01F, exchange), expected);
    EXPECT_TRUE(late.gradients.equal(whole.gradients));
    EXPECT_GE(asked, late.layout.total);
  }
}

TEST(TorchEngineOnceTest, NoTwoRanksShareAGpu) {
  EXPECT_EQ(gpu_of_rank(0, 8), 0);
  EXPECT_EQ(gpu_of_rank(7, 8), 7);
  EXPECT_EQ(gpu_of_rank(3, 1), 0);  // each process sees its own alone
  EXPECT_THROW(gpu_of_rank(2, 2), Error);
  EXPECT_THROW(gpu_of_rank(0, 0), Error);
}

TEST(TorchEngineOnceTest, PeaksAreThoseOfTheDataSheets) {
  EXPECT_EQ(peak_flops_per_second("NVIDIA A100-SXM4-80GB"), 312e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA H100 80GB HBM3"), 989e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA H100 PCIe"), 756e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA H100 NVL"), 835e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA H200"), 989e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA H20"), 148e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA B200"), 2250e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA L40S"), 362e12);
  EXPECT_EQ(peak_flops_per_second("NVIDIA GeForce RTX 9090"), std::nullopt);
}

// Kernels that compute nothing, for what a step takes from the allocator.
const BlockKernels kIdleKernels = {[](auto...) {}, [](auto...) {}, [](auto...) {}, [](auto...) {},
                                   [](auto...) {}, [](auto...) {}, [](auto...) {}};

std::map<std::string, int64_t> moved;  // bytes, by kernel

// Kernels that count what they would move.
const BlockKernels kCountingKernels = {
    [](const NormShape& shape, const float*, const void* delta, auto...) {
      moved[delta != nullptr ? "add_norm" : "norm"] += add_norm_bytes(shape, delta != nullptr);
    },
    [](const NormShape& shape, auto...) { moved["norm_backward"] += norm_backward_bytes(shape); },
    [](const RotaryShape& shape, auto...) { moved["rotate"] += rotate_bytes(shape); },
    [](const RotaryShape& shape, auto...) {
      moved["rotate_backward"] += rotate_backward_bytes(shape);
    },
    [](const ActivationShape& shape, auto...) { moved["activate"] += activate_bytes(shape); },
    [](const ActivationShape& shape, auto...) {
      moved["activate_backward"] += activate_backward_bytes(shape);
    },
    [](auto...) {}};

// The table of src/lm/README.md, in units of H bytes a token and layer.
TEST(TorchEngineOnceTest, AStepMovesWhatTheTableSays) {
  ModelConfig config = tiny_model(FeedForward::relu2, true);
  config.num_layers = 3;
  config.hidden_size = 64;
  config.intermediate_size = 4 * 64;
  Models models(config, 2, "bf16-mixed");
  models.engine.begin_training({});
  set_cpu_block_kernels(&kCountingKernels);
  moved.clear();
  models.step(random_tokens(2 * 4 * 33, 37, 5), 4, 33, 0.1F);
  set_cpu_block_kernels(nullptr);
  const auto unit = int64_t{64} * (2 * 4 * 32);  // H bytes for each token
  // The first norm has nothing to add; the last one belongs to no layer.
  EXPECT_EQ(moved.at("norm"), 6 * unit);
  EXPECT_EQ(moved.at("add_norm"), (3 * 24 - 12 + 12) * unit);
  EXPECT_EQ(moved.at("norm_backward"), (3 * 32 + 16) * unit);
  EXPECT_EQ(moved.at("rotate"), 3 * 8 * unit);
  EXPECT_EQ(moved.at("rotate_backward"), 3 * 12 * unit);
  EXPECT_EQ(moved.at("activate"), 3 * 16 * unit);
  EXPECT_EQ(moved.at("activate_backward"), 3 * 24 * unit);
  EXPECT_LE(24 + 32 + 8 + 12 + 16 + 24, 130);
}

TEST(TorchEngineOnceTest, RecomputationSavesMemory) {
  ModelConfig plain = tiny_model();
  plain.num_layers = 8;
  plain.hidden_size = 64;
  plain.intermediate_size = 160;
  CountingAllocator allocator;
  for (const ModelConfig& config : {plain, merging(plain, 4, 16), merging(plain, 4, 24)}) {
    SCOPED_TRACE(config.segment_tokens);
    Models models(config);
    const auto tokens = random_tokens(8 * 65, 37, 5);
    std::vector<double> peaks;
    set_cpu_block_kernels(&kIdleKernels);  // a GPU's tensors, and no others
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      models.engine.begin_training({recompute});
      peaks.push_back(CountingAllocator::peak_over_now([&] { models.step(tokens, 8, 65, 1); }));
    }
    set_cpu_block_kernels(nullptr);
    DeviceConfig gpu;
    gpu.device = "cuda";
    for (size_t i = 0; i < 3; ++i) {
      TrainConfig train;
      train.batch_size = 8;
      train.recompute = std::array{Recompute::none, Recompute::selective, Recompute::full}[i];
      const MemoryEstimate predicted = predicted_memory(config, train, gpu, 64, 1);
      EXPECT_NEAR((predicted.activations + predicted.loss) / peaks[i], 1, 0.05)
          << i << " " << peaks[i];
    }
    EXPECT_LT(peaks[1], 0.8 * peaks[0]);
    EXPECT_LT(peaks[2], (config.merges_experts() ? 0.8 : 0.5) * peaks[1]);
  }
}

// As if the other ranks had the same tokens.
TEST(TorchEngineOnceTest, SlicesOfExpertsTakeTheMemoryThatIsPredicted) {
  ModelConfig config = merging(tiny_model(), 4, 16);
  config.num_layers = 8;
  config.hidden_size = 64;
  config.intermediate_size = 160;
  CountingAllocator allocator;
  for (const int64_t ranks : {2, 4}) {
    Models models(config, 1, "float32", at::kCPU, {0, ranks});
    Exchange exchange;
    exchange.gather = [&](const at::Tensor& mine) {
      return at::cat(std::vector<at::Tensor>(static_cast<size_t>(ranks), mine));
    };
    exchange.sum = [&](const at::Tensor& all) { return all.chunk(ranks)[0].clone(); };
    const auto tokens = random_tokens(8 * 65, 37, 5);
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      SCOPED_TRACE(static_cast<int>(recompute));
      models.engine.begin_training({recompute, true});
      set_cpu_block_kernels(&kIdleKernels);
      const double peak =
          CountingAllocator::peak_over_now([&] { models.step(tokens, 8, 65, 1, exchange); });
      set_cpu_block_kernels(nullptr);
      DeviceConfig gpu;
      gpu.device = "cuda";
      TrainConfig train;
      train.batch_size = 8 * ranks;
      train.recompute = recompute;
      train.tensor_parallel = true;
      const MemoryEstimate predicted =
          predicted_memory(config, train, gpu, 64, static_cast<int>(ranks));
      EXPECT_NEAR((predicted.activations + predicted.loss) / peak, 1, 0.05) << ranks << " " << peak;
      EXPECT_EQ(predicted.gradients, sizeof(float) * static_cast<double>(models.layout.total));
    }
  }
}

// Losses, gradients and scores of R models in one equal those of R single ones.
TEST_P(TorchEngineTest, SeveralModelsComputeAsOne) {
  const int64_t models = at_most(3, GetParam());
  Models all(GetParam(), models);
  std::vector<int64_t> tokens;
  for (int64_t r = 0; r < models; ++r) {
    const auto part = some_tokens(5 + r);
    tokens.insert(tokens.end(), part.begin(), part.end());
  }
  const auto shared = some_tokens(50);
  const std::vector<double> losses = all.step(tokens, kRows, kRowTokens, 0.01F);
  const int64_t scores = kRows * (kRowTokens - 1), logit_count = kRows * kRowTokens * 37;
  std::vector<float> log_probs(models * scores), logits(models * logit_count);
  all.engine.compute_log_probs(shared, kRows, kRowTokens, log_probs, {});
  all.engine.logits(shared, kRows, kRowTokens, logits);

  for (int64_t r = 0; r < models; ++r) {
    Models one(GetParam());
    const int64_t total = one.layout.total;
    one.parameters.copy_(all.parameters.narrow(0, r * total, total));
    const auto own = std::span(tokens).subspan(r * kRows * kRowTokens, kRows * kRowTokens);
    const double loss = one.step(own, kRows, kRowTokens, 0.01F)[0];
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
  const int64_t count = at_most(2, GetParam());
  Models models(GetParam(), count);
  const int64_t at_once = models.engine.rows_at_once(kRowTokens), length = kRowTokens - 1;
  const std::vector<int64_t> tokens = random_tokens(at_once * kRowTokens, 37, 5);
  std::vector<float> all(count * at_once * length), some(count * kRows * length);
  models.engine.compute_log_probs(tokens, at_once, kRowTokens, all, {});
  for (const int64_t first : {int64_t{0}, int64_t{7}, at_once - kRows}) {
    models.engine.compute_log_probs(
        std::span(tokens).subspan(first * kRowTokens, kRows * kRowTokens), kRows, kRowTokens, some,
        {});
    for (int64_t r = 0; r < count; ++r) {
      const auto part = std::span(some).subspan(r * kRows * length, kRows * length);
      EXPECT_TRUE(
          std::equal(part.begin(), part.end(), all.begin() + (r * at_once + first) * length))
          << first << " " << r;
    }
  }
}

}  // namespace
}  // namespace smalltalk
