// The same models, kernels and groups on a GPU, against the CPU and float64. Skipped where there is
// none, but for what can be done on the CPU, too.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "decoded_rows.hpp"
#include "fixtures.hpp"
#include "group_training.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/block_ops.hpp"
#include "lm/torch/device.hpp"
#include "lm/torch/nccl_group.hpp"
#include "lm/torch/torch_engine.hpp"
#include "lm/torch/torch_loss.hpp"
#include "loss_reference.hpp"
#include "models_fixture.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/hidden_states.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/lm/train/memory.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "support/process_pair.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

DeviceConfig gpu(const std::string& precision) {
  DeviceConfig device;
  device.device = "cuda";
  device.precision = precision;
  return device;
}

// Of a test's SetUp: skips it where there is no GPU.
void require_gpu() {
  try {
    configure_runtime(gpu("float32"), 0);
  } catch (const std::exception& error) {
    // Where there must be one, a test that is left out is a test that fails.
    if (std::getenv("SMALLTALK_REQUIRE_GPU") != nullptr) FAIL() << error.what();
    GTEST_SKIP() << error.what();
  }
}

class CudaTest : public testing::Test {
 protected:
  void SetUp() override { require_gpu(); }
};

// Needs no GPU: what it waits for is registered when the library is loaded.
TEST(CudaLibrary, LibTorchTakesItInThoughItHasComputedBefore) {
  EXPECT_EQ(at::zeros({2}).sum().item<float>(), 0);
#ifdef SMALLTALK_CUDA_LIBRARY
  ASSERT_NO_THROW(cuda_device());
#else
  GTEST_SKIP() << "built without CUDA";
#endif
  EXPECT_GE(at::detail::getCUDAHooks().versionCUDART(), 13000);
}

double score(const Transformer& model) { return log_likelihood(model, random_tokens(65, 37, 5)); }

// The distance of two gradients as a share of the second's norm.
double distance(const at::Tensor& values, const at::Tensor& expected) {
  const at::Tensor host = values.to(at::kCPU), reference = expected.to(at::kCPU);
  EXPECT_GT(reference.norm().item<double>(), 0);
  return (host - reference).norm().item<double>() / reference.norm().item<double>();
}

at::Tensor gradients_of(Transformer& model, const std::vector<int64_t>& tokens) {
  at::Tensor flat = at::zeros({model.num_parameters()});
  const auto by_name = loss_gradients(model, tokens, 4, 65, nullptr);
  for (const ParameterSpec& spec : model.impl().layout.specs) {
    const auto& values = by_name.at(spec.name);
    std::copy(values.begin(), values.end(), flat.data_ptr<float>() + spec.offset);
  }
  return flat;
}

// Of rows of 64 tokens and one more, and of fewer of them.
at::Tensor hidden_sums(const Transformer& model) {
  std::vector<double> sums;
  visit_hidden_sums(model, random_rows(65, 37), std::vector<int64_t>{64, 17, 1},
                    [&](int64_t, std::span<const double> sum) {
                      sums.insert(sums.end(), sum.begin(), sum.end());
                    });
  return at::from_blob(sums.data(), {std::ssize(sums)}, at::kDouble).clone();
}

TEST_F(CudaTest, ScoresHiddenStatesAndGradientsAgreeWithTheCpu) {
  const auto tokens = random_tokens(4 * 65, 37, 5);
  ModelConfig packed = merging(tiny_model(FeedForward::swiglu, true, 2), 3, 10);
  packed.document_end = 2;
  packed.document_mask = true;
  for (const ModelConfig& config :
       {tiny_model(), tiny_model(FeedForward::swiglu, false, 2),
        tiny_model(FeedForward::relu2, true, 1), merging(tiny_model(), 4, 16),
        merging(tiny_model(FeedForward::relu2, false), 5, 10), packed}) {
    Transformer cpu(config, DeviceConfig(), 3);
    const at::Tensor expected = gradients_of(cpu, tokens);
    for (const auto& [precision, tolerance] :
         {std::pair<std::string, double>("float32", 1e-4), {"bf16-mixed", 3e-2}}) {
      SCOPED_TRACE(precision);
      Transformer cuda(config, gpu(precision), 3);
      EXPECT_NEAR(score(cuda), score(cpu), tolerance * std::abs(score(cpu)));
      EXPECT_LT(distance(gradients_of(cuda, tokens), expected), tolerance);
      EXPECT_LT(distance(hidden_sums(cuda), hidden_sums(cpu)), tolerance);
    }
  }
}

TEST_F(CudaTest, TrainsLikeTheCpu) {
  TrainConfig config;
  config.steps = 20;
  config.batch_size = 8;
  config.save_interval = 0;
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  std::vector<double> losses;
  for (const DeviceConfig& device : {DeviceConfig(), gpu("float32"), gpu("bf16-mixed")}) {
    Transformer model(tiny_model(), device, 1);
    losses.push_back(Trainer(model, config, options).run(random_rows(17, 37), 20).last_loss);
  }
  EXPECT_NEAR(losses[1], losses[0], 1e-2);
  EXPECT_NEAR(losses[2], losses[0], 1e-1);
}

TEST_F(CudaTest, PhasesAreTimedByEvents) {
  const TemporaryFolder folder;
  TrainConfig config;
  config.steps = config.log_interval = 20;
  config.batch_size = 8;
  config.save_interval = 0;
  TrainOptions options;
  options.name = "test";
  options.folder = folder.path();
  options.show_progress = false;
  Transformer model(tiny_model(), gpu("float32"), 1);
  Trainer(model, config, options).run(random_rows(65, 37), 20);
  std::ifstream file(folder.path() / "metrics.jsonl");
  std::string line;
  ASSERT_TRUE(std::getline(file, line) && std::getline(file, line));  // of step 20
  const auto row = nlohmann::json::parse(line);
  double sum = 0;
  for (const char* phase : {"forward", "backward", "optimizer"}) {
    const double seconds = row.at(std::string("time_metrics/") + phase + "(s)");
    EXPECT_GT(seconds, 0) << phase;
    sum += seconds;
  }
  EXPECT_LE(sum, 1.05 * row.at("time_metrics/end_to_end(s)").get<double>());
}

// Each on a GPU by its kernel, on the CPU by LibTorch's operations.
TEST_F(CudaTest, BlockKernelsAgreeWithTheCpu) {
  constexpr int64_t kModels = 2, kSequences = 3, kLength = 37;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const double tolerance = type == at::kFloat ? 1e-5 : 1e-2;
    for (const auto& [hidden, heads, kv] : {std::tuple<int64_t, int64_t, int64_t>(96, 12, 12),
                                            {1024, 16, 4},
                                            {2048, 16, 16},
                                            {4096, 32, 8}}) {
      SCOPED_TRACE(testing::Message() << type << " " << hidden);
      ModelConfig config;
      config.hidden_size = hidden;
      config.num_heads = heads;
      config.num_kv_heads = kv;
      config.intermediate_size = 2 * hidden + 4;
      const auto tokens = kSequences * kLength;
      const auto random = [&](at::IntArrayRef sizes, at::ScalarType its) {
        return at::randn(sizes).to(its);
      };
      const auto on = [](at::Device device, const at::Tensor& tensor) {
        return tensor.to(device, tensor.scalar_type(), false, /*copy=*/true);
      };
      const at::Tensor x = random({kModels, tokens, hidden}, at::kFloat),
                       delta = random({kModels, tokens, hidden}, type),
                       d_out = random({kModels, tokens, hidden}, type),
                       weight = random({kModels, 1, hidden}, at::kFloat),
                       d_x = random({kModels, tokens, hidden}, at::kFloat),
                       qkv = random({kModels, tokens, (heads + 2 * kv) * (hidden / heads)}, type);
      std::vector<at::Tensor> results[2];
      for (const bool cuda : {false, true}) {
        const at::Device device = cuda ? at::kCUDA : at::kCPU;
        std::vector<at::Tensor>& found = results[cuda ? 1 : 0];
        const Normed normed =
            add_norm(on(device, x), on(device, delta), on(device, weight), 1e-5, type);
        at::Tensor its_d_x = on(device, d_x), d_weight = at::zeros_like(on(device, weight));
        found = {normed.sum, normed.out,
                 norm_backward(on(device, d_out), normed, on(device, weight), its_d_x, d_weight),
                 its_d_x, d_weight};
        const RotaryAngles angles = rotary_angles(config, kLength, device);
        at::Tensor its_qkv = on(device, qkv);
        const Heads parts = split_heads(config, its_qkv, angles);
        found.push_back(its_qkv.clone());
        found.push_back(split_heads_backward(config, parts, angles, kModels));
        for (const FeedForward form : {FeedForward::swiglu, FeedForward::relu2}) {
          config.feed_forward = form;
          at::manual_seed(7);
          const at::Tensor up = random({kModels, tokens, gate_up_width(config)}, type),
                           d_act = random({kModels, tokens, config.intermediate_size}, type);
          found.push_back(activation(config, on(device, up)));
          found.push_back(activation_backward(config, on(device, up), on(device, d_act)));
        }
      }
      for (size_t i = 0; i < results[0].size(); ++i) {
        EXPECT_LT(distance(results[1][i].to(at::kFloat), results[0][i].to(at::kFloat)), tolerance)
            << i;
      }
    }
  }
}

// The heads that attention's fast kernels are made for, as the experiments have them.
ModelConfig production_model(int64_t head_dim, FeedForward form, int64_t kv_heads) {
  ModelConfig config = tiny_model(form, true, kv_heads);
  config.num_heads = 4;
  config.hidden_size = 4 * head_dim;
  config.intermediate_size = 16 * head_dim;
  config.vocab_size = 1000;
  return config.resolved();
}

TEST_F(CudaTest, HeadsOf64And128AgreeWithTheCpu) {
  const auto tokens = random_tokens(4 * 65, 1000, 5);
  for (const int64_t head_dim : {64, 128}) {
    for (const int64_t kv : {4, 2}) {
      SCOPED_TRACE(testing::Message() << head_dim << " " << kv);
      const ModelConfig config = production_model(head_dim, FeedForward::relu2, kv);
      Transformer cpu(config, DeviceConfig(), 3), cuda(config, gpu("bf16-mixed"), 3);
      EXPECT_LT(distance(gradients_of(cuda, tokens), gradients_of(cpu, tokens)), 3e-2);
    }
  }
}

// Several chunks of logits, as many tokens as make embeddings' gradients take their other path, and
// a vocabulary as large as they come.
TEST_F(CudaTest, LargeLossesAgreeWithFloat32) {
  for (const auto& [tokens, vocab] :
       {std::pair<int64_t, int64_t>(16'384, 32'000), {512, 262'144}}) {
    const int64_t hidden = 64;
    const at::Tensor input = at::randn({tokens, hidden}).to(at::kCUDA, at::kBFloat16),
                     head = (at::randn({vocab, hidden}) / 8).to(at::kCUDA, at::kBFloat16),
                     targets = at::randint(vocab, {tokens}, at::kLong).to(at::kCUDA);
    at::Tensor d_input = at::empty_like(input), d_head = at::zeros_like(head, at::kFloat);
    const double loss =
        fused_cross_entropy(input, head, targets, 1.0F, d_input, d_head).item<double>();
    const at::Tensor head_float = head.to(at::kFloat);
    at::Tensor expected_d_head = at::zeros_like(d_head);
    double expected = 0;
    for (int64_t first = 0; first < tokens; first += 512) {
      const at::Tensor rows = input.narrow(0, first, 512).to(at::kFloat),
                       wanted = targets.narrow(0, first, 512).unsqueeze(1);
      const at::Tensor logits = rows.matmul(head_float.t()), sums = logits.logsumexp(1, true);
      expected += (sums - logits.gather(1, wanted)).sum(at::kDouble).item<double>();
      at::Tensor gradient = (logits - sums).exp();
      gradient.scatter_add_(1, wanted, -at::ones_like(wanted, gradient.options()));
      expected_d_head.add_(gradient.t().matmul(rows));
      const at::Tensor expected_d_rows = gradient.matmul(head_float);
      EXPECT_LT(distance(d_input.narrow(0, first, 512).to(at::kFloat), expected_d_rows), 1e-2);
    }
    EXPECT_NEAR(loss, expected, 1e-4 * expected);
    EXPECT_LT(distance(d_head, expected_d_head), 1e-2);
  }
}

// What a step takes from the device is what is predicted.
TEST_F(CudaTest, MemoryIsThatOfTheEstimate) {
  ModelConfig plain = production_model(64, FeedForward::relu2, 4);
  plain.num_layers = 8;
  plain.vocab_size = 8000;
  TrainConfig train;
  train.batch_size = 16;
  train.save_interval = 0;
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  for (const auto& [config, recompute] : {std::pair(plain, Recompute::none),
                                          {plain, Recompute::selective},
                                          {plain, Recompute::full},
                                          {merging(plain, 4, 128), Recompute::none},
                                          {merging(plain, 4, 100), Recompute::full}}) {
    train.recompute = recompute;
    const double before = cuda_device().memory().active_bytes;
    Transformer model(config, gpu("bf16-mixed"), 1);
    Trainer trainer(model, train, options);
    cuda_device().reset_peak_memory();
    trainer.run(random_rows(513, config.vocab_size), 4);
    const double measured = cuda_device().memory().peak_bytes - before;
    const double predicted = predicted_memory(config, train, gpu("bf16-mixed"), 512, 1).total();
    EXPECT_NEAR(measured / predicted, 1, 0.05) << measured << " " << predicted;
  }
}

// From a checkpoint on the device, to the same bits.
TEST_F(CudaTest, ResumedEqualsUnbroken) {
  const TemporaryFolder folder;
  TrainConfig config;
  config.steps = 12;
  config.batch_size = 8;
  config.save_interval = 5;
  const auto train = [&](const ModelConfig& its_model, const std::string& name,
                         std::vector<int64_t> stops) {
    std::vector<float> weights;
    for (const int64_t stop : stops) {
      Transformer model(its_model, gpu("bf16-mixed"), 1);
      TrainOptions options;
      options.name = "test";
      options.show_progress = false;
      options.folder = folder.path() / name;
      Trainer trainer(model, config, options);
      trainer.resume();
      trainer.run(random_rows(65, 1000), stop);
      weights = model.weights();
    }
    return weights;
  };
  const ModelConfig plain = production_model(64, FeedForward::swiglu, 2);
  EXPECT_EQ(train(plain, "cut", {5, 12}), train(plain, "whole", {12}));
  const ModelConfig merged = merging(plain, 4, 24);
  EXPECT_EQ(train(merged, "merged-cut", {5, 12}), train(merged, "merged-whole", {12}));
}

TEST_F(CudaTest, LossKernelsAgreeWithFloat64) {
  for (const auto& [shape, spread] : {std::pair(LossShape{5, 8, 2}, 1.0F),
                                      {LossShape{128, 32, 128}, 0.5F},
                                      {LossShape{129, 33, 300}, 0.5F},
                                      {LossShape{300, 72, 1025}, 0.5F},
                                      {LossShape{3, 100, 70000}, 0.2F},
                                      {LossShape{40, 16, 50}, 8.0F}}) {
    SCOPED_TRACE(std::to_string(shape.vocab));
    LossCase c = random_loss_case(shape, spread);
    const auto rounded = [](std::vector<float>& values, int64_t rows) {
      const at::Tensor host = at::from_blob(
          values.data(), {rows, static_cast<int64_t>(values.size()) / rows}, at::kFloat);
      const at::Tensor result = host.to(at::kBFloat16);
      host.copy_(result);
      return result.to(at::kCUDA);
    };
    const at::Tensor hidden = rounded(c.hidden, shape.tokens), head = rounded(c.head, shape.vocab);
    const at::Tensor targets =
        at::from_blob(c.targets.data(), {shape.tokens}, at::kLong).to(at::kCUDA);
    const float scale = 1.0F / static_cast<float>(shape.tokens);
    const LossReference r = loss_reference(c, scale);
    at::Tensor d_hidden = at::empty_like(hidden), d_head = at::zeros_like(head, at::kFloat);
    const at::Tensor loss = fused_cross_entropy(hidden, head, targets, scale, d_hidden, d_head);
    EXPECT_NEAR(loss.item<double>(), r.loss, 1e-5 * std::abs(r.loss));
    const auto values = [](const at::Tensor& tensor) {
      const at::Tensor host = tensor.to(at::kFloat).to(at::kCPU);
      return std::vector<float>(host.const_data_ptr<float>(),
                                host.const_data_ptr<float>() + host.numel());
    };
    const TargetScores scores = fused_target_scores(hidden, head, targets);
    expect_near(values(scores.log_probs), r.log_probs, 1e-5);
    EXPECT_EQ(values(scores.greedy), r.greedy);
    expect_near(values(d_hidden), r.d_hidden, 1e-2);
    expect_near(values(d_head), r.d_head, 1e-2);
  }
}

struct CudaModels : Models {
  CudaModels(int64_t count, const std::string& precision,
             const ModelConfig& model = tiny_model(FeedForward::swiglu, false, 2))
      : Models(model, count, precision, at::kCUDA) {}
  at::Tensor step(const std::vector<int64_t>& tokens, const Exchange& exchange,
                  double* loss = nullptr) {
    gradients.zero_();
    engine.begin_training({recompute, static_cast<bool>(exchange.ready)});
    const std::vector<double> losses = Models::step(tokens, 4, 65, 0.01F, exchange);
    if (loss != nullptr) *loss = std::accumulate(losses.begin(), losses.end(), 0.0);
    return gradients.clone();
  }

  Recompute recompute = Recompute::none;
};

// With `ready`, a step is never recorded.
const Exchange ignore = {{}, [](int64_t, int64_t) {}};

// What is recorded or computed in other batches may be added up in another order.
constexpr double kReordered = 1e-5, kReorderedBf16 = 1e-2;

double reordered(const std::string& precision) {
  return precision == "float32" ? kReordered : kReorderedBf16;
}

TEST_F(CudaTest, RecomputationChangesNothing) {
  const auto tokens = random_tokens(4 * 65, 37, 5);
  for (const std::string precision : {"float32", "bf16-mixed"}) {
    CudaModels models(1, precision);
    const at::Tensor expected = models.step(tokens, ignore);
    for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
      models.recompute = recompute;
      EXPECT_LT(distance(models.step(tokens, ignore), expected), reordered(precision));
    }
  }
}

TEST_F(CudaTest, SeveralModelsComputeAsOne) {
  const auto tokens = random_tokens(3 * 4 * 65, 37, 5);
  for (const std::string precision : {"float32", "bf16-mixed"}) {
    CudaModels all(3, precision), one(1, precision);
    const at::Tensor gradients = all.step(tokens, ignore);
    const auto shared = random_tokens(4 * 65, 37, 50);
    std::vector<float> log_probs(3 * 4 * 64), one_log_probs(4 * 64);
    all.engine.compute_log_probs(shared, 4, 65, log_probs, {});
    for (int64_t r = 0; r < 3; ++r) {
      const int64_t total = one.layout.total;
      one.parameters.copy_(all.parameters.narrow(0, r * total, total));
      one.copy_again();
      const std::vector<int64_t> own(tokens.begin() + r * 4 * 65,
                                     tokens.begin() + (r + 1) * 4 * 65);
      EXPECT_LT(distance(gradients.narrow(0, r * total, total), one.step(own, ignore)),
                reordered(precision));
      one.engine.compute_log_probs(shared, 4, 65, one_log_probs, {});
      for (int64_t i = 0; i < 4 * 64; ++i) {
        ASSERT_NEAR(log_probs[r * 4 * 64 + i], one_log_probs[i],
                    precision == "float32" ? 1e-3 : 0.1);
      }
    }
  }
}

// The first step is not recorded, the second is, the third only launched; then another shape.
class CudaGraphTest : public CudaTest, public testing::WithParamInterface<ModelConfig> {};
INSTANTIATE_TEST_SUITE_P(Kinds, CudaGraphTest,
                         testing::Values(tiny_model(FeedForward::swiglu, false, 2),
                                         merging(tiny_model(FeedForward::swiglu), 4, 16),
                                         merging(tiny_model(FeedForward::relu2), 3, 10)));

TEST_P(CudaGraphTest, EqualsEager) {
  for (const std::string precision : {"float32", "bf16-mixed"}) {
    CudaModels graph(1, precision, GetParam()), eager(1, precision, GetParam());
    for (uint64_t step = 0; step < 5; ++step) {
      SCOPED_TRACE(step);
      const auto tokens = random_tokens(4 * 65, 37, step);
      double graph_loss = 0, eager_loss = 0;
      const at::Tensor gradients = graph.step(tokens, {}, &graph_loss);
      EXPECT_LT(distance(gradients, eager.step(tokens, ignore, &eager_loss)), reordered(precision));
      EXPECT_NEAR(graph_loss, eager_loss, 1e-5 * eager_loss);
      // Scores between the steps, as a trainer that evaluates.
      std::vector<float> log_probs(2 * 32);
      graph.engine.compute_log_probs(random_tokens(2 * 33, 37, step), 2, 33, log_probs, {});
      // Weights change in place.
      for (CudaModels* models : {&graph, &eager}) {
        models->parameters.mul_(0.9);
        models->copy_again();
      }
    }
    graph.gradients.zero_();
    eager.gradients.zero_();
    const auto tokens = random_tokens(2 * 33, 37, 9);
    graph.engine.accumulate_gradients(tokens, 2, 33, 0.1F, {});
    eager.engine.accumulate_gradients(tokens, 2, 33, 0.1F, ignore);
    EXPECT_LT(distance(graph.gradients, eager.gradients), reordered(precision));
  }
}

// As routers train: a stack, recorded, over rounds with scoring between them, whatever is computed
// again.
TEST_F(CudaTest, ARecordedStackEqualsAnEagerOneOverRounds) {
  const ModelConfig config = production_model(64, FeedForward::relu2, 4);
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    CudaModels graph(3, "bf16-mixed", config), eager(3, "bf16-mixed", config);
    graph.recompute = eager.recompute = recompute;
    for (uint64_t step = 0; step < 12; ++step) {
      const auto tokens = random_tokens(3 * 4 * 65, 1000, step);
      EXPECT_LT(distance(graph.step(tokens, {}), eager.step(tokens, ignore)), kReorderedBf16)
          << step;
      for (CudaModels* models : {&graph, &eager}) {
        models->parameters.mul_(0.99);
        models->copy_again();
      }
      if (step % 4 != 3) continue;
      std::vector<float> log_probs(3 * 2 * 32);
      graph.engine.compute_log_probs(random_tokens(2 * 33, 1000, step), 2, 33, log_probs, {});
    }
  }
}

TEST_F(CudaTest, AnUpdateAgreesWithTheCpu) {
  constexpr int64_t kSize = 300001, kDecaying = 200002;
  constexpr UpdateRule kRule{0.9, 0.95, 1e-6, 0.3, 1};
  at::Tensor host[4], device[4];  // parameters, gradients, first and second moments
  for (int i = 0; i < 4; ++i) {
    host[i] = at::randn({kSize});
    if (i == 3) host[i].square_();
    device[i] = host[i].to(at::kCUDA);
  }
  const double square = host[1].to(at::kDouble).square().sum().item<double>();
  const auto doubles = at::device(at::kCUDA).dtype(at::kDouble);
  at::Tensor parts = at::zeros({kSquareParts}, doubles), loss = at::ones({1}, doubles),
             numbers = at::zeros({StepSlots::size(1)}, doubles),
             state = at::zeros({sizeof(UpdateState)}, doubles.dtype(at::kByte)),
             copy = at::zeros({kSize}, doubles.dtype(at::kBFloat16));
  auto* of_state = reinterpret_cast<UpdateState*>(state.data_ptr());
  const UpdateKernels& kernels = cuda_device().update_kernels();
  CUstream_st* const stream = cuda_device().stream();
  kernels.square_sums(device[1].const_data_ptr<float>(), kSize, parts.data_ptr<double>(), stream);
  kernels.collect({}, parts.const_data_ptr<double>(), kSquareParts, loss.data_ptr<double>(),
                  numbers.data_ptr<double>(), stream);
  kernels.decide(kRule, 0.1, 1, numbers.const_data_ptr<double>(), of_state, stream);
  const UpdateBuffers buffers{device[0].data_ptr<float>(),
                              device[1].data_ptr<float>(),
                              device[2].data_ptr<float>(),
                              device[3].data_ptr<float>(),
                              static_cast<uint16_t*>(copy.data_ptr()),
                              kSize,
                              kDecaying};
  kernels.adamw(of_state, buffers, stream);
  cuda_device().check_launch();
  EXPECT_NEAR(numbers[StepSlots::kSquareSum].item<double>() / square, 1, 1e-6);
  EXPECT_EQ(numbers[StepSlots::kLosses].item<double>(), 1);

  AdamStep step = adam_step(kRule, 0.1, 0, std::sqrt(square), 1);
  const auto part = [&](int i, int64_t from) { return host[i].data_ptr<float>() + from; };
  elementwise().adamw(part(0, 0), part(1, 0), part(2, 0), part(3, 0), kDecaying, step);
  step.weight_decay = 0;
  elementwise().adamw(part(0, kDecaying), part(1, kDecaying), part(2, kDecaying),
                      part(3, kDecaying), kSize - kDecaying, step);
  for (const int i : {0, 2, 3}) EXPECT_LT(distance(device[i], host[i]), 1e-6) << i;
  EXPECT_TRUE(copy.equal(device[0].to(at::kBFloat16)));
  EXPECT_EQ(device[1].abs().max().item<float>(), 0);
}

// Copies that are under way while the device computes arrive as they were when they were asked for.
TEST_F(CudaTest, TokensAreUploadedBesideTheWork) {
  const at::Tensor a = at::randn({4096, 4096}, at::device(at::kCUDA).dtype(at::kFloat));
  std::vector<at::Tensor> sums;
  std::vector<int64_t> expected;
  for (int64_t i = 0; i < 200; ++i) {
    const std::vector<int64_t> tokens(10000, i);
    at::mm(a, a);
    sums.push_back(cuda_device().upload(tokens).sum());
    expected.push_back(10000 * i);
  }
  for (size_t i = 0; i < sums.size(); ++i) ASSERT_EQ(sums[i].item<int64_t>(), expected[i]) << i;
}

TEST_F(CudaTest, DecodesAsTheCpu) {
  for (const int64_t kv_heads : {1, 2, 4}) {
    for (const auto& [precision, tolerance] :
         {std::pair<std::string, double>("float32", 1e-4), {"bf16-mixed", 5e-2}}) {
      SCOPED_TRACE(testing::Message() << kv_heads << " " << precision);
      const ModelConfig config = tiny_model(FeedForward::swiglu, false, kv_heads);
      const Transformer cuda(config, gpu(precision), 3), cpu(config, DeviceConfig(), 3);
      expect_decoded_as_whole(cuda, cpu, tolerance);
    }
  }
}

// The largest difference of losses, and the norm of that of weights.
std::pair<double, double> apart(const Trained& one, const Trained& other) {
  double losses = 0, squares = 0;
  for (size_t i = 0; i < one.losses.size(); ++i) {
    losses = std::max(losses, std::abs(one.losses[i] - other.losses.at(i)));
  }
  for (size_t i = 0; i < one.weights.size(); ++i) {
    const double difference = one.weights[i] - other.weights.at(i);
    squares += difference * difference;
  }
  return {losses, std::sqrt(squares)};
}

// On the CPU float32 over a socket, on two GPUs bfloat16 over NCCL.
class TwoProcessesTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() != "cuda") return;
    require_gpu();
    if (IsSkipped() || HasFatalFailure()) return;
    const int count = at::detail::getCUDAHooks().getNumGPUs();
    if (count < 2) GTEST_SKIP() << "needs two GPUs, and sees " << count;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, TwoProcessesTest, testing::Values("cpu", "cuda"),
                         [](const auto& device) { return device.param; });

TEST_P(TwoProcessesTest, TrainAsOne) {
  const DeviceConfig device = GetParam() == "cuda" ? gpu("bf16-mixed") : DeviceConfig();
  ProcessPair pair;
  const HostCollectives host = pair.collectives();
  configure_runtime(device, host.rank);
  const TemporaryFolder folder;
  const std::string first = host.rank == 0 ? folder.path().string() : "";
  const std::vector<char> shared = gather_values<char>(first, host);
  const ModelConfig model = tiny_model(FeedForward::swiglu, false, 2);
  const Trained both = train_in_group(host, model, 0, 1024, device,
                                      std::filesystem::path(shared.begin(), shared.end()));
  if (host.rank != 0) return;
  ASSERT_TRUE(pair.wait());
  const auto alone = [&](int64_t micro_batch_size) {
    return train_in_group(HostCollectives(), model, micro_batch_size, 1024, device,
                          folder / "alone");
  };
  const Trained one = alone(0);
  EXPECT_LT(one.losses.back(), one.losses.front() - 1);  // there is a curve to compare
  ASSERT_EQ(both.losses.size(), one.losses.size());
  ASSERT_EQ(both.weights.size(), one.weights.size());
  // One rank in two micro-batches adds up in another order, too; in float32 that may by chance come
  // to nothing (expect_same_training()).
  const auto [losses, weights] = apart(both, one);
  const auto [losses_in_parts, weights_in_parts] = apart(alone(6), one);
  EXPECT_LE(losses, 3 * losses_in_parts + 5e-6) << losses_in_parts;
  EXPECT_LE(weights, 3 * weights_in_parts + 1e-5) << weights_in_parts;
}

TEST_F(CudaTest, NcclGroupOfOneGivesBackWhatItGets) {
  const auto group = make_nccl_group(HostCollectives());
  const at::Tensor mine = at::randn({1000}, at::device(at::kCUDA).dtype(at::kFloat));
  at::Tensor in = mine.clone(), out = at::zeros_like(mine);
  group->_reduce_scatter_base(out, in, c10d::ReduceScatterOptions())->wait();
  EXPECT_TRUE(out.equal(mine));
  out.zero_();
  group->_allgather_base(out, in, c10d::AllgatherOptions())->wait();
  EXPECT_TRUE(out.equal(mine));
  std::vector<at::Tensor> list = {in};
  group->allreduce(list, c10d::AllreduceOptions())->wait();
  EXPECT_TRUE(in.equal(mine));
}

}  // namespace
}  // namespace smalltalk
