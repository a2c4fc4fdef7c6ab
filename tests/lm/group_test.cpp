// A group trains what one rank trains, whatever its size, micro-batches and buckets; and its
// collectives run while the backward pass goes on.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "core/thread_ranks.hpp"
#include "group_training.hpp"
#include "lm/sharded_adamw.hpp"
#include "smalltalk/core/run_folder.hpp"

namespace smalltalk {
namespace {

struct Case {
  int ranks;
  int64_t micro_batch_size;
  bool tied;
  int64_t bucket_bytes;
};

class GroupCurveTest : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Cases, GroupCurveTest,
                         testing::Values(Case{1, 3, true, 1024}, Case{2, 0, true, 1024},
                                         Case{2, 2, false, 1024}, Case{3, 1, true, 1024},
                                         Case{4, 0, false, 1024}, Case{4, 1, true, 1024},
                                         Case{4, 1, true, 25 << 20}));

TEST_P(GroupCurveTest, IsThatOfOneRank) {
  const auto [ranks, micro, tied, bucket_bytes] = GetParam();
  const ModelConfig model = tiny_model(FeedForward::swiglu, tied);
  const Trained alone = train_in_group(HostCollectives(), model, 0);
  EXPECT_LT(alone.losses.back(), alone.losses.front() - 1);  // there is a curve to compare

  std::vector<Trained> group(ranks);
  run_thread_ranks(ranks, [&](const HostCollectives& host) {
    group[host.rank] = train_in_group(host, model, micro, bucket_bytes);
  });
  expect_same_training(alone, group[0]);
  for (const Trained& rank : group) {
    EXPECT_EQ(rank.weights, group[0].weights);  // the same bits
    EXPECT_EQ(rank.losses, group[0].losses);
  }
}

TEST(GroupTest, ACheckpointKeepsItsBytesInGroupsOfAnySize) {
  const TemporaryFolder folder;
  const auto written = folder.path() / "checkpoint.safetensors";
  const auto options_of = [&](const HostCollectives& host) {
    TrainOptions options;
    options.name = "test";
    options.show_progress = false;
    options.bucket_bytes = 700;
    options.group = host;
    options.folder = folder.path();
    return options;
  };
  run_thread_ranks(4, [&](const HostCollectives& host) {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, group_training_config(0), options_of(host));
    trainer.run(few_rows(), 5);
    trainer.save(written);
  });
  for (int ranks : {1, 2, 3, 4}) {
    const auto again = folder.path() / ("again" + std::to_string(ranks));
    run_thread_ranks(ranks, [&](const HostCollectives& host) {
      Transformer model(tiny_model(), DeviceConfig(), 9);
      Trainer trainer(model, group_training_config(0), options_of(host));
      EXPECT_EQ(trainer.resume(), 5);
      trainer.save(again);
    });
    EXPECT_TRUE(read_text(written) == read_text(again)) << ranks;
  }
}

// Stops the backward pass once the last layer's gradients are final, until `reduced` says that a
// collective has finished.
class StoppingEngine : public Engine {
 public:
  StoppingEngine(std::unique_ptr<Engine> engine, int64_t last_layer,
                 const std::atomic<int>& reduced)
      : engine_(std::move(engine)), last_layer_(last_layer), reduced_(reduced) {}

  std::vector<double> accumulate_gradients_of_models(std::span<const int64_t> tokens, int64_t rows,
                                                     int64_t row_tokens, float scale,
                                                     const GradientsReady& ready) override {
    GradientsReady stopping;
    if (ready) {
      stopping = [&](int64_t begin, int64_t end) {
        ready(begin, end);
        if (begin != last_layer_) return;
        const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (reduced_ == 0 && std::chrono::steady_clock::now() < give_up) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        reduced_in_time_ = reduced_ > 0;
      };
    }
    const double loss = engine_->accumulate_gradients(tokens, rows, row_tokens, scale, stopping);
    reduced_after_.push_back(reduced_);
    return {loss};
  }
  void set_recompute(Recompute recompute) override { engine_->set_recompute(recompute); }
  PhaseSeconds seconds() override { return engine_->seconds(); }
  void target_log_probs(std::span<const int64_t>, int64_t, int64_t, std::span<float>) override {}
  void logits(std::span<const int64_t>, int64_t, int64_t, std::span<float>) override {}
  void rebind(float* parameters, float* gradients) override {
    engine_->rebind(parameters, gradients);
  }

  bool reduced_in_time() const { return reduced_in_time_; }
  // Collectives finished after each micro-batch.
  const std::vector<int>& reduced_after() const { return reduced_after_; }

 private:
  std::unique_ptr<Engine> engine_;
  int64_t last_layer_;
  const std::atomic<int>& reduced_;
  bool reduced_in_time_ = false;
  std::vector<int> reduced_after_;
};

TEST(GroupTest, SumsGradientsDuringTheBackwardPassOfTheLastMicroBatch) {
  run_thread_ranks(2, [](HostCollectives host) {
    std::atomic<int> reduced = 0;
    host.reduce_scatter_sum = [&, sum = host.reduce_scatter_sum](std::span<const float> in,
                                                                 std::span<float> out) {
      sum(in, out);
      ++reduced;
    };
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Transformer::Impl& impl = model.impl();
    auto stopping = std::make_unique<StoppingEngine>(std::move(impl.engine),
                                                     impl.layout.layers.back().qkv, reduced);
    const StoppingEngine& engine = *stopping;
    impl.engine = std::move(stopping);
    TrainOptions options;
    options.name = "test";
    options.show_progress = false;
    options.group = host;
    options.bucket_bytes = 1024;
    Trainer(model, group_training_config(2), options).run(few_rows(), 1);
    EXPECT_TRUE(engine.reduced_in_time());
    ASSERT_EQ(engine.reduced_after().size(), 3U);
    EXPECT_EQ(engine.reduced_after()[0], 0);
    EXPECT_EQ(engine.reduced_after()[1], 0);
    EXPECT_GT(engine.reduced_after()[2], 0);
  });
}

TEST(GroupTest, CountsOnlyTheSecondsInWhichItWaits) {
  static constexpr double kSeconds = 0.4;  // of one reduce-scatter
  run_thread_ranks(2, [](HostCollectives host) {
    std::atomic<int> reduced = 0;
    host.reduce_scatter_sum = [&, sum = host.reduce_scatter_sum](std::span<const float> in,
                                                                 std::span<float> out) {
      sum(in, out);
      std::this_thread::sleep_for(std::chrono::duration<double>(kSeconds));
      ++reduced;
    };
    Transformer model(tiny_model(), DeviceConfig(), 1);
    ShardedAdamW optimizer(model.impl(), group_training_config(0), host, "", 1 << 20);
    optimizer.step(0, 1e-3, 0);
    const double waited = optimizer.seconds().communication;
    const int buckets = reduced;
    EXPECT_GE(waited, kSeconds * buckets);

    // The same while the rank has other things to do.
    optimizer.gradients_ready()(0, model.num_parameters());
    while (reduced < 2 * buckets) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    optimizer.step(1, 1e-3, 0);
    EXPECT_LT(optimizer.seconds().communication - waited, kSeconds / 2);
  });
}

}  // namespace
}  // namespace smalltalk
