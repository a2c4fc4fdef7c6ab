// A group trains what one rank trains, whatever its size, micro-batches and buckets; and its
// collectives run while the backward pass goes on.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "group_training.hpp"
#include "lm/train/sharded_adamw.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"

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

// Segments of 5, 5 and 2 tokens; a first one that looks ahead, and one that does not.
TEST(GroupTest, RanksThatCutExpertsTrainWhatOneRankTrains) {
  for (const FeedForward feed_forward : {FeedForward::swiglu, FeedForward::relu2}) {
    ModelConfig model = merging(tiny_model(feed_forward, feed_forward == FeedForward::relu2), 3, 5);
    if (feed_forward == FeedForward::relu2) model.first_segment = FirstSegment::uniform;
    const Trained alone = train_in_group(HostCollectives(), model, 0);
    EXPECT_LT(alone.losses.back(), alone.losses.front() - 1);
    for (const auto& [ranks, micro] : {std::pair{2, 0}, {2, 3}, {3, 4}, {4, 1}}) {
      SCOPED_TRACE(ranks);
      const TemporaryFolder folder;
      std::vector<Trained> group(static_cast<size_t>(ranks));
      run_thread_ranks(ranks, [&, micro = micro](const HostCollectives& host) {
        group[static_cast<size_t>(host.rank)] =
            train_in_group(host, model, micro, 1024, {}, folder.path(), true);
      });
      expect_same_training(alone, group[0], kOtherEngine);
      for (const Trained& rank : group) EXPECT_EQ(rank.losses, group[0].losses);
    }
  }
}

TEST(GroupTest, OnlyMergedExpertsAreCutAndIntoSlicesOfOneSize) {
  const ModelConfig model = merging(tiny_model(), 3, 5);
  const auto complaint = [](const ModelConfig& config, int64_t ranks) {
    return complaint_of([&] { Transformer(config, DeviceConfig(), 1, {0, ranks}); });
  };
  EXPECT_EQ(complaint(model, 4), "");
  EXPECT_TRUE(mentions(complaint(model, 5), "intermediate_size (24)"));
  EXPECT_TRUE(mentions(complaint(model.dense(), 2), "merge none"));
  ModelConfig upper = model;
  upper.merged_layers = "1";
  EXPECT_TRUE(mentions(complaint(upper, 2), "merge none"));
  ModelConfig masked = model;
  masked.document_mask = true;
  EXPECT_TRUE(mentions(complaint(masked, 2), "documents"));
}

// For tests that change one thing of an engine.
class ForwardingEngine : public Engine {
 public:
  explicit ForwardingEngine(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}
  LossSums accumulate_gradients(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                float scale, const Exchange& exchange) override {
    return engine_->accumulate_gradients(tokens, rows, row_tokens, scale, exchange);
  }
  void begin_training(const TrainingPlan& plan) override { engine_->begin_training(plan); }
  PhaseSeconds seconds() override { return engine_->seconds(); }
  int64_t rows_at_once(int64_t) const override { return 1; }
  void compute_log_probs(std::span<const int64_t>, int64_t, int64_t, std::span<float>,
                         std::span<uint8_t>, const Merging&) override {}
  std::vector<RowRouting> routing(std::span<const int64_t>, int64_t, int64_t) override {
    return {};
  }
  void logits(std::span<const int64_t>, int64_t, int64_t, std::span<float>) override {}
  void sum_hidden_states(std::span<const int64_t>, int64_t, int64_t, std::span<const int64_t>,
                         std::span<double>) override {}
  void rebind(const ModelBuffers& buffers) override { engine_->rebind(buffers); }

 private:
  std::unique_ptr<Engine> engine_;
};

// Stops the backward pass once the last layer's gradients are final, until `reduced` says that a
// collective has finished.
class StoppingEngine : public ForwardingEngine {
 public:
  StoppingEngine(std::unique_ptr<Engine> engine, int64_t last_layer,
                 const std::atomic<int>& reduced)
      : ForwardingEngine(std::move(engine)), last_layer_(last_layer), reduced_(reduced) {}

  LossSums accumulate_gradients(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                float scale, const Exchange& exchange) override {
    Exchange stopping = exchange;
    if (exchange.ready) {
      stopping.ready = [&](int64_t begin, int64_t end) {
        exchange.ready(begin, end);
        if (begin != last_layer_) return;
        const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (reduced_ == 0 && std::chrono::steady_clock::now() < give_up) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        reduced_in_time_ = reduced_ > 0;
      };
    }
    const auto losses =
        ForwardingEngine::accumulate_gradients(tokens, rows, row_tokens, scale, stopping);
    reduced_after_.push_back(reduced_);
    return losses;
  }

  bool reduced_in_time() const { return reduced_in_time_; }
  // Collectives finished after each micro-batch.
  const std::vector<int>& reduced_after() const { return reduced_after_; }

 private:
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

// Loses its mind in the passes from `first` to before `last`.
class NanEngine : public ForwardingEngine {
 public:
  NanEngine(std::unique_ptr<Engine> engine, int first, int last)
      : ForwardingEngine(std::move(engine)), first_(first), last_(last) {}
  LossSums accumulate_gradients(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                float scale, const Exchange& exchange) override {
    const LossSums losses =
        ForwardingEngine::accumulate_gradients(tokens, rows, row_tokens, scale, exchange);
    const bool broken = pass_ >= first_ && pass_ < last_;
    ++pass_;
    return broken ? LossSums{[] { return std::vector<double>{NAN}; }} : losses;
  }

 private:
  int first_, last_, pass_ = 0;
};

// One rank's loss is not a number in steps 2 to before 2 + count.
TrainSummary train_with_nan(const HostCollectives& host, bool skip, int count) {
  Transformer model(tiny_model(), DeviceConfig(), 1);
  if (host.rank == 1) {
    model.impl().engine = std::make_unique<NanEngine>(std::move(model.impl().engine), 2, 2 + count);
  }
  TrainConfig config = group_training_config(0);
  config.skip_nonfinite = skip;
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  options.group = host;
  RowSource rows = few_rows();
  rows.sequence_of = [](int64_t row) { return static_cast<uint64_t>(1000 + row); };
  const TrainSummary summary = Trainer(model, config, options).run(rows, 30);
  for (const float weight : model.weights()) EXPECT_TRUE(std::isfinite(weight));
  return summary;
}

TEST(GroupTest, AStepThatIsNotFiniteIsNamedOrLeftOut) {
  const int64_t first_row = 2 * group_training_config(0).batch_size;
  run_thread_ranks(2, [&](const HostCollectives& host) {
    try {
      train_with_nan(host, false, 1);
      FAIL();
    } catch (const Error& error) {  // the same on both ranks
      const std::string text = error.what();
      EXPECT_NE(text.find("step 3 is not finite"), std::string::npos) << text;
      EXPECT_NE(text.find(fmt::format("sequences {}, {}", 1000 + first_row, 1001 + first_row)),
                std::string::npos)
          << text;
    }
  });
  run_thread_ranks(2, [](const HostCollectives& host) {
    const TrainSummary summary = train_with_nan(host, true, 3);
    EXPECT_EQ(summary.steps, 30);
    EXPECT_TRUE(std::isfinite(summary.last_loss));
  });
  // Who skips for ever is told.
  run_thread_ranks(
      2, [](const HostCollectives& host) { EXPECT_THROW(train_with_nan(host, true, 30), Error); });
}

TEST(GroupTest, ReducesWhileTheRankHasOtherThingsToDo) {
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
    ShardedAdamW optimizer(model.impl(), group_training_config(0), host, 1 << 20);
    optimizer.begin_step({1e-3});
    const int buckets = reduced;
    EXPECT_GE(optimizer.seconds().communication, kSeconds * buckets);  // in which it waited

    // Gradients that are ready go ahead; the step finds them reduced.
    optimizer.exchange(true).ready(0, model.num_parameters());
    while (reduced < 2 * buckets) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    optimizer.begin_step({1e-3});
    EXPECT_EQ(reduced, 2 * buckets);
    optimizer.wait_for_parameters();
  });
}

}  // namespace
}  // namespace smalltalk
