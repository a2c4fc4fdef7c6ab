// The CUDA kernels of the optimiser, run on the CPU: each against float64, and all of them as what
// trains a model, alone and in a group whose ranks hold float32 weights of their own share only.
#include "block_emulation.hpp"
// The kernels need what stands above.
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "counting_allocator.hpp"
#include "group_training.hpp"
#include "guarded.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/block_ops.hpp"
#include "lm/torch/torch_engine.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/train/memory.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"
#include "trainer_fixtures.hpp"

namespace smalltalk {
namespace {

constexpr UpdateRule kRule{0.8, 0.95, 1e-6, 0.3, 0.5};

void fill(Guarded<float>& values, uint64_t seed, float scale) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < values.size(); ++i) values[i] = scale * normal(generator);
}

void check_adamw(int64_t size, int64_t decaying, bool copies, bool accepted) {
  SCOPED_TRACE(testing::Message() << size << " " << decaying << copies << accepted);
  const auto count = static_cast<size_t>(size);
  Guarded<float> parameters(count), gradients(count), first(count), second(count);
  Guarded<uint16_t> copy(count, 7);
  fill(parameters, 1, 1);
  fill(gradients, 2, 0.1F);
  fill(first, 3, 0.1F);
  fill(second, 4, 0.1F);
  std::vector<double> expected, m, v;
  UpdateState state{adam_step(kRule, 0.01, 4, 2, 0.75), 5, accepted ? 1 : 0};
  for (size_t i = 0; i < count; ++i) {
    second[i] = std::abs(second[i]);
    // Divided by what counts, then clipped to 0.5; the fifth update.
    const double g = static_cast<double>(gradients[i]) / 0.75 * (0.5 / 2);
    m.push_back(0.8 * first[i] + 0.2 * g);
    v.push_back(0.95 * second[i] + 0.05 * g * g);
    const double decay = static_cast<int64_t>(i) < decaying ? 1 - 0.01 * 0.3 : 1;
    const double step =
        m[i] / (1 - std::pow(0.8, 5)) / (std::sqrt(v[i] / (1 - std::pow(0.95, 5))) + 1e-6);
    expected.push_back(parameters[i] * decay - 0.01 * step);
  }
  const std::vector<float> before(parameters.data(), parameters.data() + size);
  const UpdateBuffers buffers{parameters.data(),
                              gradients.data(),
                              first.data(),
                              second.data(),
                              copies ? copy.data() : nullptr,
                              size,
                              decaying};
  kUpdateKernels.adamw(&state, buffers, nullptr);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_EQ(gradients[i], 0) << i;
    if (!accepted) {
      ASSERT_EQ(parameters[i], before[i]);
      ASSERT_EQ(copy[i], 7);
      continue;
    }
    ASSERT_NEAR(parameters[i], expected[i], 2e-6) << i;
    ASSERT_NEAR(first[i], m[i], 1e-6) << i;
    ASSERT_NEAR(second[i], v[i], 1e-6) << i;
    ASSERT_EQ(copy[i], copies ? emulation::to_bf16(parameters[i]) : 7) << i;
  }
}

TEST(UpdateKernels, AdamWAgreesWithFloat64) {
  for (const bool copies : {false, true}) {
    check_adamw(1, 1, copies, true);
    check_adamw(1027, 514, copies, true);
    check_adamw(4096, 0, copies, true);
    check_adamw(2000, 2000, copies, true);
    check_adamw(1027, 514, copies, false);
  }
}

TEST(UpdateKernels, NumbersOfAStepAgreeWithFloat64) {
  for (const int64_t size : {1, 1023, 5000}) {
    Guarded<float> values(static_cast<size_t>(size));
    fill(values, 1, 1);
    double expected = 0;
    for (size_t i = 0; i < values.size(); ++i) expected += std::pow(values[i], 2);
    std::vector<double> parts(2 * kSquareParts, 0), numbers(StepSlots::size(3), 77);
    for (int64_t half = 0; half < 2; ++half) {
      kUpdateKernels.square_sums(values.data(), size, parts.data() + half * kSquareParts, nullptr);
    }
    double loss = 8;
    RankNumbers mine{1, 3, 0.5};
    mine.stop = 1;
    mine.counted = 0.25;
    kUpdateKernels.collect(mine, parts.data(), std::ssize(parts), &loss, numbers.data(), nullptr);
    EXPECT_NEAR(numbers[StepSlots::kSquareSum], 2 * expected, 1e-6 * expected);
    EXPECT_EQ(std::vector(numbers.begin() + 1, numbers.end()),
              (std::vector<double>{1, 0, 0.25, 0, 4, 0}));
    EXPECT_EQ(loss, 0);
  }
}

TEST(UpdateKernels, AStepIsAcceptedIfAllIsFinite) {
  UpdateState state{};
  state.updates = 3;
  // Of two ranks, of whose targets three quarters count.
  std::vector<double> numbers = {2.25, 0, 0, 1.5, 4, 5};
  kUpdateKernels.decide(kRule, 0.1, 2, numbers.data(), &state, nullptr);
  EXPECT_EQ(state.accepted, 1);
  EXPECT_EQ(state.updates, 4);
  EXPECT_FLOAT_EQ(state.step.gradient_scale, static_cast<float>(1 / 0.75 * 0.5 / 2));
  EXPECT_FLOAT_EQ(state.step.correction1, static_cast<float>(1 - std::pow(0.8, 4)));
  for (const size_t slot : {size_t{0}, size_t{5}}) {
    const double kept = std::exchange(numbers[slot], NAN);
    kUpdateKernels.decide(kRule, 0.1, 2, numbers.data(), &state, nullptr);
    EXPECT_EQ(state.accepted, 0);
    EXPECT_EQ(state.updates, 4);
    numbers[slot] = kept;
  }
}

// The emulation is for one thread at a time.
std::mutex emulating;
template <auto kKernel, class... Arguments>
void locked(Arguments... arguments) {
  const std::lock_guard lock(emulating);
  (kUpdateKernels.*kKernel)(arguments...);
}
const UpdateKernels kLockedKernels = {
    [](const float* values, int64_t size, double* parts, CUstream_st* stream) {
      locked<&UpdateKernels::square_sums>(values, size, parts, stream);
    },
    [](const RankNumbers& mine, const double* parts, int64_t num_parts, double* loss,
       double* numbers, CUstream_st* stream) {
      locked<&UpdateKernels::collect>(mine, parts, num_parts, loss, numbers, stream);
    },
    [](const UpdateRule& rule, double lr, int64_t ranks, const double* numbers, UpdateState* state,
       CUstream_st* stream) {
      locked<&UpdateKernels::decide>(rule, lr, ranks, numbers, state, stream);
    },
    [](const UpdateState* state, const UpdateBuffers& buffers, CUstream_st* stream) {
      locked<&UpdateKernels::adamw>(state, buffers, stream);
    }};

// While it lives, the CPU's optimisers work as a GPU's.
struct Emulated {
  Emulated() { set_cpu_update_kernels(&kLockedKernels); }
  ~Emulated() { set_cpu_update_kernels(nullptr); }
};

// The model computes as on a GPU.
void use_torch_engine(Transformer& model, const std::string& precision) {
  Transformer::Impl& impl = model.impl();
  if (precision == "bf16-mixed") impl.copies = impl.parameters.to(at::kBFloat16);
  impl.engine = std::make_unique<TorchEngine>(impl.config, impl.layout, at::kCPU, precision, 1);
  impl.allocate_gradients();
}

std::vector<nlohmann::json> rows_of_log(const std::filesystem::path& folder) {
  std::vector<nlohmann::json> rows;
  std::istringstream lines(read_text(folder / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

// What is decided on the device is what the host decides, though it hears of it later.
TEST(UpdateKernels, TrainAsTheHostDoes) {
  const TemporaryFolder folder;
  std::vector<std::vector<float>> weights;
  for (const bool emulated : {false, true}) {
    std::optional<Emulated> kernels;
    if (emulated) kernels.emplace();
    Transformer model(tiny_model(), DeviceConfig(), 1);
    TrainConfig config = group_training_config(4);
    config.log_interval = 7;
    config.outlier_zscore = 3;
    Trainer trainer(model, config, quiet(folder.path() / std::to_string(emulated)));
    trainer.run(few_rows(), kGroupSteps);
    weights.push_back(model.weights());
  }
  for (size_t i = 0; i < weights[0].size(); ++i) {
    ASSERT_NEAR(weights[1][i], weights[0][i], 1e-5) << i;
  }
  const auto a = rows_of_log(folder.path() / "0"), b = rows_of_log(folder.path() / "1");
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(a.size(), 10U);
  for (size_t i = 0; i < a.size(); ++i) {
    for (const char* key : {"step", "loss_metrics/global_avg_loss", "loss_metrics/global_max_loss",
                            "grad_norm", "lr"}) {
      EXPECT_NEAR(a[i].at(key).get<double>(), b[i].at(key).get<double>(), 1e-5) << key << i;
    }
  }
}

// The checkpoint of a group that shares weights out is that of any other.
TEST(UpdateKernels, AGroupThatSharesWeightsOutSavesThemAll) {
  const TemporaryFolder folder;
  const auto written = folder.path() / "checkpoints/step-00000004.safetensors";
  const auto run = [&](int ranks, const auto& with) {
    run_thread_ranks(ranks, [&](const HostCollectives& host) {
      Transformer model(tiny_model(FeedForward::swiglu, false, 2), DeviceConfig(), 1);
      use_torch_engine(model, "bf16-mixed");
      TrainOptions options = quiet(folder.path());
      options.group = host;
      options.bucket_bytes = 700;
      Trainer trainer(model, group_training_config(0), options);
      with(trainer);
    });
  };
  run(3, [&](Trainer& trainer) {
    trainer.run(few_rows(), 4);
    trainer.checkpoint();
  });
  for (const int ranks : {1, 2, 3, 4}) {
    SCOPED_TRACE(ranks);
    const auto again = folder.path() / std::to_string(ranks);
    run(ranks, [&](Trainer& trainer) {
      EXPECT_EQ(trainer.resume(), 4);
      trainer.save(again);
    });
    EXPECT_TRUE(read_text(written) == read_text(again));
  }
}

// Weights, gradients and moments of a group take what the plan of a run says of its GPUs.
TEST(UpdateKernels, AGroupThatSharesWeightsOutTakesThePredictedMemory) {
  const Emulated kernels;
  ModelConfig config = tiny_model(FeedForward::swiglu, true);
  config.hidden_size = 64;
  config.intermediate_size = 256;
  config.num_layers = 6;
  constexpr int kRanks = 3;
  double taken = 0;
  {
    CountingAllocator allocator;
    const double before = CountingAllocator::bytes();
    run_thread_ranks(kRanks, [&](const HostCollectives& host) {
      Transformer model(config, DeviceConfig(), 1);
      use_torch_engine(model, "bf16-mixed");
      TrainOptions options = quiet();
      options.group = host;
      const Trainer trainer(model, group_training_config(0), options);
      host.barrier();
      if (host.rank == 0) taken = (CountingAllocator::bytes() - before) / kRanks;
      host.barrier();
    });
  }
  DeviceConfig gpu;
  gpu.device = "cuda";
  gpu.precision = "bf16-mixed";
  const MemoryEstimate predicted =
      predicted_memory(config, group_training_config(0), gpu, 12, kRanks);
  EXPECT_NEAR(taken / (predicted.weights + predicted.gradients + predicted.optimizer), 1, 0.05);
}

// Stops and checkpoints of a device that is not waited for fall where the host's fall.
TEST(UpdateKernels, ResumeToTheBit) {
  const Emulated kernels;
  const TemporaryFolder folder;
  TrainConfig config = group_training_config(0);
  config.save_interval = 6;
  config.log_interval = 1000;
  const auto train = [&](const std::string& name, std::vector<int64_t> lasts) {
    std::vector<float> weights;
    for (const int64_t last : lasts) {
      Transformer model(tiny_model(), DeviceConfig(), 1);
      use_torch_engine(model, "bf16-mixed");
      Trainer trainer(model, config, quiet(folder.path() / name));
      trainer.resume();
      trainer.run(few_rows(), last);
      weights = model.weights();
    }
    return weights;
  };
  EXPECT_EQ(train("cut", {9, 20}), train("whole", {20}));
}

TEST(UpdateKernels, AStepThatIsNotFiniteIsNamedOrLeftOut) {
  const Emulated kernels;
  TrainConfig config = diverging_training(60);
  config.log_interval = 1000;
  const auto error_of = [&](const TrainConfig& with) {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    try {
      Trainer(model, with, quiet()).run(random_rows(13, 37), 60);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::string device = error_of(config);
  TrainConfig skipping = config;
  skipping.skip_nonfinite = true;
  const std::string device_skipping = error_of(skipping);
  set_cpu_update_kernels(nullptr);
  EXPECT_EQ(device, error_of(config));
  EXPECT_EQ(device_skipping, error_of(skipping));
  EXPECT_NE(device.find("is not finite"), std::string::npos) << device;
  EXPECT_NE(device_skipping.find("So were the 10 steps"), std::string::npos);
}

// In bfloat16 the ranks of a group hold float32 weights of their own share, and copies of all. It
// trains what one rank trains, up to where a sum in another order falls on the other side of a
// bfloat16's border.
TEST(UpdateKernels, AGroupThatSharesWeightsOutTrainsLikeOne) {
  const auto train = [&](const HostCollectives& host, int64_t micro, at::Tensor* copies) {
    Transformer model(tiny_model(FeedForward::swiglu, false, 2), DeviceConfig(), 1);
    use_torch_engine(model, "bf16-mixed");
    TrainOptions options = quiet();
    options.group = host;
    options.bucket_bytes = 1024;
    Trainer trainer(model, group_training_config(micro), options);
    std::vector<double> losses;
    for (int64_t step = 0; step < 30; ++step) {
      losses.push_back(trainer.run(few_rows(), step + 1).last_loss);
    }
    *copies = model.impl().copies.narrow(0, 0, model.impl().layout.total).clone();
    EXPECT_EQ(model.impl().parameters.defined(), host.size == 1);
    return losses;
  };
  for (const bool emulated : {false, true}) {
    std::optional<Emulated> kernels;
    if (emulated) kernels.emplace();
    at::Tensor alone_copies;
    const std::vector<double> alone = train(HostCollectives(), 0, &alone_copies);
    EXPECT_LT(alone.back(), alone.front() - 0.5);
    const int ranks = emulated ? 2 : 3;
    std::vector<at::Tensor> copies(static_cast<size_t>(ranks));
    std::vector<std::vector<double>> losses(copies.size());
    run_thread_ranks(ranks, [&](const HostCollectives& host) {
      const auto r = static_cast<size_t>(host.rank);
      losses[r] = train(host, 2, &copies[r]);
    });
    for (size_t i = 0; i < alone.size(); ++i) {
      EXPECT_NEAR(losses[0][i], alone[i], (i < 5 ? 1e-3 : 1e-2) * alone[i]) << i;
    }
    for (size_t r = 1; r < copies.size(); ++r) {
      EXPECT_TRUE(copies[r].equal(copies[0])) << r;  // the same bits
      EXPECT_EQ(losses[r], losses[0]);
    }
    const at::Tensor difference = (copies[0] - alone_copies).to(at::kFloat);
    EXPECT_LT(difference.norm().item<double>(),
              0.02 * alone_copies.to(at::kFloat).norm().item<double>());
  }
}

}  // namespace
}  // namespace smalltalk
