// Memory as predicted against what a fresh process grows by when it trains.
#include "smalltalk/lm/train/memory.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "fixtures.hpp"
#include "lm/model/parameter_layout.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kSeqLength = 128;

struct MemoryCase {
  ModelConfig model;
  int64_t batch_size, micro_batch_size, threads;
  Recompute recompute = Recompute::none;
};

ModelConfig model_of(int64_t hidden, int64_t layers, int64_t vocab, bool tied) {
  ModelConfig model;
  model.hidden_size = hidden;
  model.num_layers = layers;
  model.num_heads = 4;
  model.vocab_size = vocab;
  model.tie_embeddings = tied;
  return model;
}

TrainConfig training_of(const MemoryCase& c) {
  TrainConfig train;
  train.batch_size = c.batch_size;
  train.micro_batch_size = c.micro_batch_size;
  train.recompute = c.recompute;
  train.save_interval = 0;
  return train;
}

double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double all = 0, resident = 0;
  file >> all >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

void train(const MemoryCase& c, const std::function<void()>& at_the_end) {
  DeviceConfig device;
  device.threads = c.threads;
  Transformer model(c.model, device, 1);
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  Trainer trainer(model, training_of(c), options);
  trainer.run(random_rows(kSeqLength + 1, c.model.vocab_size), 2);
  at_the_end();
}

// Growth of the resident memory of a process that does nothing else. A tiny training run comes
// first: it loads code and starts what is started once.
double measured_bytes(const MemoryCase& c) {
  int ends[2];
  if (pipe(ends) != 0) throw Error("pipe failed");
  const pid_t child = fork();
  if (child == 0) {
    MemoryCase tiny = c;
    tiny.model = tiny_model();
    train(tiny, [] {});
    const double before = resident_bytes();
    double growth = 0;
    train(c, [&] { growth = resident_bytes() - before; });
    const bool written = write(ends[1], &growth, sizeof(growth)) == sizeof(growth);
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  double growth = 0;
  const ssize_t count = read(ends[0], &growth, sizeof(growth));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (count != sizeof(growth) || status != 0) throw Error("the child failed");
  return growth;
}

class MemoryTest : public testing::TestWithParam<MemoryCase> {};
INSTANTIATE_TEST_SUITE_P(
    Cases, MemoryTest,
    testing::Values(MemoryCase{model_of(256, 4, 4096, true), 4, 0, 1},   // most of it parameters
                    MemoryCase{model_of(256, 4, 4096, false), 8, 4, 2},  // and threads' gradients
                    MemoryCase{model_of(128, 12, 2048, true), 8, 0, 2},  // most of it activations
                    MemoryCase{model_of(128, 12, 2048, true), 8, 0, 2, Recompute::selective},
                    MemoryCase{model_of(128, 12, 2048, true), 8, 0, 2, Recompute::full},
                    MemoryCase{model_of(64, 1, 50000, true), 4, 0, 1},  // most of it vocabulary
                    MemoryCase{merging(model_of(128, 4, 2048, true), 8, 32), 8, 0, 2}));

TEST_P(MemoryTest, IsWhatAFreshProcessGrowsBy) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer keeps memory of its own beside every allocation";
#endif
  const MemoryCase& c = GetParam();
  DeviceConfig device;
  device.threads = c.threads;
  const MemoryEstimate predicted = predicted_memory(c.model, training_of(c), device, kSeqLength, 1);
  EXPECT_GT(predicted.total(), 20e6);
  const double measured = measured_bytes(c);
  EXPECT_NEAR(predicted.total() / measured, 1, 0.15) << measured << " bytes measured";
  std::printf(
      "predicted %.1f MB (weights %.1f, gradients %.1f, moments %.1f, activations %.1f, "
      "loss %.1f), measured %.1f MB\n",
      predicted.total() / 1e6, predicted.weights / 1e6, predicted.gradients / 1e6,
      predicted.optimizer / 1e6, predicted.activations / 1e6, predicted.loss / 1e6, measured / 1e6);
}

TEST(MemoryOfGroupTest, ACheckpointTakesARanksShare) {
  const MemoryCase c{model_of(256, 4, 4096, true), 8, 2, 1};
  TrainConfig train = training_of(c);
  train.save_interval = 100;
  const auto checkpoint = [&](int ranks) {
    return predicted_memory(c.model, train, DeviceConfig(), 128, ranks).checkpoint;
  };
  EXPECT_NEAR(checkpoint(1) / checkpoint(4), 4, 1e-3);
}

TEST(MemoryOfGroupTest, SharesOutTheMomentsAlone) {
  const MemoryCase c{model_of(256, 4, 4096, true), 8, 2, 1};
  const MemoryEstimate one = predicted_memory(c.model, training_of(c), DeviceConfig(), 128, 1);
  const MemoryEstimate four = predicted_memory(c.model, training_of(c), DeviceConfig(), 128, 4);
  EXPECT_NEAR(one.optimizer / four.optimizer, 4, 1e-3);
  EXPECT_NEAR(one.gradients / four.gradients, 1, 1e-3);
  EXPECT_EQ(one.activations, four.activations);  // the same micro-batch
  EXPECT_EQ(one.communication, 0);
  EXPECT_GT(four.communication, 0);
}

DeviceConfig gpu() {
  DeviceConfig device;
  device.device = "cuda";
  device.precision = "bf16-mixed";
  return device;
}

TEST(MemoryOfGpuTest, TheLargestMicroBatchThatFitsIsTaken) {
  MemoryCase c{model_of(256, 8, 4096, true), 24, 0, 1, Recompute::none};
  const auto needed = [&](int64_t micro) {
    c.micro_batch_size = micro;
    return predicted_memory(c.model, training_of(c), gpu(), kSeqLength, 2).total();
  };
  const auto fitting = [&](double bytes) {
    c.micro_batch_size = 0;
    return fitted_to_device(c.model, training_of(c), gpu(), kSeqLength, 2, bytes).micro_batch_size;
  };
  EXPECT_EQ(fitting(needed(12) / 0.9 + 1), 12);  // all of a rank's share
  EXPECT_EQ(fitting(needed(12) / 0.9 - 1e4), 6);
  EXPECT_EQ(fitting(needed(4) / 0.9 + 1), 4);  // 5 does not divide it
  EXPECT_EQ(fitting(needed(1) / 0.9 + 1), 1);
  try {
    fitting(needed(1) / 0.9 - 1e4);
    ADD_FAILURE() << "it fits";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("expert.recompute"), std::string::npos);
  }
}

TEST(MemoryOfGpuTest, NoMoreIsComputedAgainThanMustBe) {
  constexpr int64_t kLength = 1024;
  const MemoryCase c{model_of(256, 8, 4096, true), 64, 0, 1, Recompute::automatic};
  const auto needed = [&](Recompute recompute, int64_t micro) {
    TrainConfig train = training_of(c);
    train.recompute = recompute;
    train.micro_batch_size = micro;
    return predicted_memory(c.model, train, gpu(), kLength, 1).total() / 0.9 + 1;
  };
  const auto fitted = [&](double bytes) {
    const TrainConfig train = fitted_to_device(c.model, training_of(c), gpu(), kLength, 1, bytes);
    return std::pair(train.recompute, train.micro_batch_size);
  };
  using enum Recompute;
  EXPECT_EQ(fitted(needed(none, 64)), std::pair(none, int64_t{64}));
  EXPECT_EQ(fitted(needed(none, 4)), std::pair(none, int64_t{4}));
  // 4,096 tokens at a time are worth more than what is kept.
  ASSERT_LT(needed(selective, 4), needed(none, 4) - 10);
  EXPECT_EQ(fitted(needed(none, 4) - 10), std::pair(selective, int64_t{4}));
  ASSERT_LT(needed(none, 1), needed(full, 4) - 10);
  EXPECT_EQ(fitted(needed(none, 1)).first, none);
  EXPECT_EQ(fitted_to_device(c.model, training_of(c), DeviceConfig(), kLength, 1, 1).recompute,
            none);
}

// 7.5 bytes a parameter: an eighth of float32 weights and of two moments, all bfloat16 weights and
// float32 gradients.
TEST(MemoryOfGpuTest, ThePapersLargestModelFitsIntoEightGpus) {
  ModelConfig model = model_of(4096, 32, 32'000, false);
  model.num_heads = 32;
  model.feed_forward = FeedForward::relu2;
  model.intermediate_size = 4 * 4096;
  TrainConfig train;
  train.batch_size = 512;
  train.recompute = Recompute::selective;
  const TrainConfig fitted = fitted_to_device(model, train, gpu(), 1024, 8, 80e9);
  const MemoryEstimate memory = predicted_memory(model, fitted, gpu(), 1024, 8);
  const auto parameters = static_cast<double>(parameter_layout(model.resolved()).total);
  EXPECT_NEAR((memory.weights + memory.gradients + memory.optimizer) / parameters, 7.5, 0.01);
  EXPECT_LE(memory.total(), 72e9);
  EXPECT_GE(fitted.micro_batch_size, 2);
  std::printf("%.2fB parameters, micro batch %ld: %.1f GB, activations %.1f\n", parameters / 1e9,
              static_cast<long>(fitted.micro_batch_size), memory.total() / 1e9,
              memory.activations / 1e9);
}

TEST(MemoryOfGpuTest, RecomputingKeepsLess) {
  MemoryCase c{model_of(256, 8, 4096, true), 8, 0, 1};
  DeviceConfig device;
  device.device = "cuda";
  const auto activations = [&](Recompute recompute) {
    c.recompute = recompute;
    return predicted_memory(c.model, training_of(c), device, kSeqLength, 1).activations;
  };
  EXPECT_LT(activations(Recompute::selective), activations(Recompute::none));
  EXPECT_LT(activations(Recompute::full), activations(Recompute::selective));
  const double floats = activations(Recompute::none);
  device.precision = "bf16-mixed";
  EXPECT_LT(activations(Recompute::none), floats);
  EXPECT_GT(activations(Recompute::none), floats / 2);  // the residual stream stays float32
}

}  // namespace
}  // namespace smalltalk
