// The same models, kernels and groups on a GPU, against the CPU and float64. Skipped where there is
// none.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "fixtures.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/device.hpp"
#include "lm/torch/nccl_group.hpp"
#include "lm/torch/torch_engine.hpp"
#include "lm/torch/torch_loss.hpp"
#include "loss_reference.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

DeviceConfig gpu(const std::string& precision) {
  DeviceConfig device;
  device.device = "cuda";
  device.precision = precision;
  return device;
}

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    try {
      configure_runtime(gpu("float32"), 0);
    } catch (const std::exception& error) {
      GTEST_SKIP() << error.what();
    }
  }
};

// Needs no GPU: what it waits for is registered when the library is loaded.
TEST(CudaLibrary, LibTorchTakesItInThoughItHasComputedBefore) {
  EXPECT_EQ(at::zeros({2}).sum().item<float>(), 0);
  try {
    cuda_device();
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
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

TEST_F(CudaTest, ScoresAndGradientsAgreeWithTheCpu) {
  const auto tokens = random_tokens(4 * 65, 37, 5);
  for (const ModelConfig& config : {tiny_model(), tiny_model(FeedForward::swiglu, false, 2),
                                    tiny_model(FeedForward::relu2, true, 1)}) {
    Transformer cpu(config, DeviceConfig(), 3);
    const at::Tensor expected = gradients_of(cpu, tokens);
    for (const auto& [precision, tolerance] :
         {std::pair<std::string, double>("float32", 1e-4), {"bf16-mixed", 3e-2}}) {
      SCOPED_TRACE(precision);
      Transformer cuda(config, gpu(precision), 3);
      EXPECT_NEAR(score(cuda), score(cpu), tolerance * std::abs(score(cpu)));
      EXPECT_LT(distance(gradients_of(cuda, tokens), expected), tolerance);
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

// The kernels' tiles are 128 tokens, 128 words and 32 of the hidden size.
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

// Models of one flat buffer on the GPU.
struct CudaModels {
  CudaModels(int64_t count, const std::string& precision)
      : config(tiny_model(FeedForward::swiglu, false, 2).resolved()),
        layout(parameter_layout(config)),
        parameters(initial(layout, count)),
        gradients(at::zeros_like(parameters)),
        engine(config, layout, parameters, precision, count) {
    engine.rebind(parameters.data_ptr<float>(), gradients.data_ptr<float>());
  }
  static at::Tensor initial(const ParameterLayout& layout, int64_t count) {
    at::Tensor host = at::zeros({count, layout.total});
    for (int64_t r = 0; r < count; ++r) {
      for (const ParameterSpec& spec : layout.specs) {
        init_parameter(spec, static_cast<uint64_t>(3 + r), host[r].data_ptr<float>() + spec.offset);
      }
    }
    return host.to(at::kCUDA);
  }
  at::Tensor step(const std::vector<int64_t>& tokens, const GradientsReady& ready,
                  double* loss = nullptr) {
    gradients.zero_();
    const auto losses = engine.accumulate_gradients(tokens, 4, 65, 0.01F, ready);
    if (loss != nullptr) *loss = std::accumulate(losses.begin(), losses.end(), 0.0);
    return gradients.clone();
  }

  ModelConfig config;
  ParameterLayout layout;
  at::Tensor parameters, gradients;
  TorchEngine engine;
};

// With `ready`, a step is never recorded.
void ignore(int64_t, int64_t) {}

// Sums of the attention kernels' gradients may come in any order.
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
      models.engine.set_recompute(recompute);
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
      one.parameters.copy_(all.parameters.narrow(0, r, 1));
      const std::vector<int64_t> own(tokens.begin() + r * 4 * 65,
                                     tokens.begin() + (r + 1) * 4 * 65);
      EXPECT_LT(distance(gradients.narrow(0, r, 1), one.step(own, ignore)), reordered(precision));
      one.engine.compute_log_probs(shared, 4, 65, one_log_probs, {});
      for (int64_t i = 0; i < 4 * 64; ++i) {
        ASSERT_NEAR(log_probs[r * 4 * 64 + i], one_log_probs[i],
                    precision == "float32" ? 1e-3 : 0.1);
      }
    }
  }
}

// The first step is not recorded, the second is, the third only launched; then another shape.
TEST_F(CudaTest, GraphEqualsEager) {
  for (const std::string precision : {"float32", "bf16-mixed"}) {
    CudaModels graph(1, precision), eager(1, precision);
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
      graph.parameters.mul_(0.9);
      eager.parameters.mul_(0.9);
    }
    graph.gradients.zero_();
    eager.gradients.zero_();
    const auto tokens = random_tokens(2 * 33, 37, 9);
    graph.engine.accumulate_gradients(tokens, 2, 33, 0.1F, {});
    eager.engine.accumulate_gradients(tokens, 2, 33, 0.1F, ignore);
    EXPECT_LT(distance(graph.gradients, eager.gradients), reordered(precision));
  }
}

TEST_F(CudaTest, AdamWAgreesWithTheCpu) {
  constexpr int64_t kSize = 5000;
  at::Tensor host[4], device[4];  // parameters, gradients, first and second moments
  for (int i = 0; i < 4; ++i) {
    host[i] = at::randn({kSize});
    if (i == 3) host[i].square_();
    device[i] = host[i].to(at::kCUDA);
  }
  AdamStep step{};
  step.lr = 0.1F;
  step.beta1 = 0.9F;
  step.beta2 = 0.95F;
  step.eps = 1e-6F;
  step.weight_decay = 0.3F;
  step.correction1 = 0.5F;
  step.correction2_root = 0.7F;
  step.gradient_scale = 0.8F;
  const auto update = [&](auto apply, at::Tensor* tensors) {
    apply(tensors[0].data_ptr<float>(), tensors[1].data_ptr<float>(), tensors[2].data_ptr<float>(),
          tensors[3].data_ptr<float>(), kSize, step);
  };
  update(elementwise().adamw, host);
  update([](auto... arguments) { cuda_device().adamw(arguments...); }, device);
  for (const int i : {0, 2, 3}) EXPECT_LT(distance(device[i], host[i]), 1e-6) << i;
}

TEST_F(CudaTest, NcclGroupOfOneGivesBackWhatItGets) {
  const TemporaryFolder folder;
  const auto group = make_nccl_group(HostCollectives(), (folder.path() / "nccl").string());
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
