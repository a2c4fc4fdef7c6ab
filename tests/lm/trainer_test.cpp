// The training loop: it learns, and a group computes what one rank computes.
#include "smalltalk/lm/train/trainer.hpp"

#include <gtest/gtest.h>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"
#include "trainer_fixtures.hpp"

namespace smalltalk {
namespace {

TEST(TrainerTest, LearnsOneBatchByHeart) {
  ModelConfig model_config = tiny_model();
  model_config.hidden_size = 32;
  model_config.init_std = model_config.embedding_std = 0;  // those of a real run
  Transformer model(model_config, DeviceConfig(), 1);
  TrainConfig config = small_training(200);
  config.lr = 1e-2;
  const RowSource same{17, [](int64_t, int64_t count, std::span<int64_t> tokens) {
                         const auto batch = random_tokens(count * 17, 37, 9);
                         std::copy(batch.begin(), batch.end(), tokens.begin());
                       }};
  Trainer trainer(model, config, quiet());
  const TrainSummary summary = trainer.run(same, 200);
  EXPECT_EQ(summary.steps, 200);
  EXPECT_EQ(summary.tokens, 200 * 8 * 16);
  EXPECT_LT(summary.last_loss, 0.25);  // rows that differ at their first token alone cannot reach 0
}

TEST(TrainerTest, MicroBatchesAndThreadsChangeOnlyRounding) {
  const RowSource rows = random_rows(13, 37);
  std::vector<std::map<std::string, std::vector<float>>> results;
  for (const auto& [micro, threads] : {std::pair(0, 1), {2, 1}, {1, 1}, {0, 2}, {0, 3}}) {
    DeviceConfig device;
    device.threads = threads;
    Transformer model(tiny_model(), device, 1);
    TrainConfig config = small_training(5);
    config.micro_batch_size = micro;
    Trainer(model, config, quiet()).run(rows, 5);
    results.push_back(weights(model));
  }
  for (const auto& result : results) {
    for (const auto& [name, values] : result) {
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_NEAR(values[i], results[0].at(name)[i], 2e-4) << name;
      }
    }
  }
}

class TrainerInAGroup : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, TrainerInAGroup, testing::Values(2, 4));

TEST_P(TrainerInAGroup, EqualsOneRankWithinRounding) {
  const int size = GetParam();
  const TemporaryFolder folder;
  const RowSource rows = random_rows(13, 37);
  TrainConfig config = small_training(6);
  config.grad_clip = 0.5;
  config.save_interval = 3;

  Transformer alone(tiny_model(), DeviceConfig(), 1);
  const TrainSummary expected = Trainer(alone, config, quiet()).run(rows, 6);

  std::vector<std::map<std::string, std::vector<float>>> results(static_cast<size_t>(size));
  std::vector<double> losses(static_cast<size_t>(size));
  // Trained to step 3 by one set of ranks, taken up and finished by another.
  for (int64_t last : {3, 6}) {
    run_thread_ranks(size, [&](const HostCollectives& group) {
      Transformer model(tiny_model(), DeviceConfig(), 1);
      TrainOptions options = quiet(folder.path());
      options.group = group;
      Trainer trainer(model, config, options);
      trainer.resume();
      losses[static_cast<size_t>(group.rank)] = trainer.run(rows, last).last_loss;
      results[static_cast<size_t>(group.rank)] = weights(model);
    });
  }
  const auto reference = weights(alone);
  for (const auto& result : results) {
    EXPECT_EQ(result, results[0]);  // the same bits on every rank
    for (const auto& [name, values] : result) {
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_NEAR(values[i], reference.at(name)[i], 2e-4) << name;
      }
    }
  }
  for (double loss : losses) EXPECT_NEAR(loss, expected.last_loss, 1e-5);
  EXPECT_GT(metrics(folder.path()).back().at("time_metrics/communication(s)"), 0);

  // The checkpoint of a group is that of one rank.
  Transformer model(tiny_model(), DeviceConfig(), 5);
  Trainer trainer(model, config, quiet(folder.path()));
  EXPECT_EQ(trainer.resume(), 6);
  EXPECT_EQ(weights(model), results[0]);
}

TEST(TrainerTest, PhasesArePartsOfTheStep) {
  const TemporaryFolder folder;
  Transformer model(tiny_model(), DeviceConfig(), 1);
  TrainConfig config = small_training(20);
  config.log_interval = 10;
  Trainer(model, config, quiet(folder.path())).run(random_rows(65, 37), 20);
  const auto row = metrics(folder.path()).at(2);
  ASSERT_EQ(row.at("step"), 20);
  double sum = 0;
  for (const char* phase : {"data_loading", "forward", "backward", "communication", "optimizer"}) {
    const double seconds = row.at(std::string("time_metrics/") + phase + "(s)");
    EXPECT_EQ(seconds > 0, std::string(phase) != "communication") << phase;  // nobody to talk to
    sum += seconds;
  }
  EXPECT_LE(sum, row.at("time_metrics/end_to_end(s)"));
}

TEST(TrainerTest, AReadThatFailsEndsTheRunWithItsText) {
  Transformer model(tiny_model(), DeviceConfig(), 1);
  RowSource rows = random_rows(13, 37);
  const auto read = rows.read;
  rows.read = [read](int64_t first, int64_t count, std::span<int64_t> tokens) {
    if (first >= 3 * 8) throw Error("the disk is on fire");
    read(first, count, tokens);
  };
  Trainer trainer(model, small_training(10), quiet());
  try {
    trainer.run(rows, 10);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the disk is on fire");
  }
  EXPECT_EQ(trainer.step(), 3);
}

TEST(TrainerTest, WritesATraceOfTheStepsNamed) {
  const TemporaryFolder folder;
  DeviceConfig device;
  device.trace_steps = "2:4";
  Transformer model(tiny_model(), device, 1);
  TrainConfig config = small_training(6);
  config.micro_batch_size = 4;
  Trainer(model, config, quiet(folder.path())).run(random_rows(13, 37), 6);
  const auto trace = nlohmann::json::parse(read_text(folder.path() / "trace.json"));
  std::map<std::string, int> count;
  for (const auto& event : trace.at("traceEvents")) {
    if (event.at("ph") == "X") ++count[event.at("name")];
  }
  EXPECT_EQ(count["step 1"] + count["step 4"], 0);
  EXPECT_EQ(count["step 2"], 1);
  EXPECT_EQ(count["step 3"], 1);
  for (const char* name : {"forward", "loss", "backward", "wait for tokens"}) {
    EXPECT_EQ(count[name], 4) << name;  // steps x micro-batches
  }
  EXPECT_EQ(count["AdamW"], 2);
}

TEST(TrainerTest, WritesForTensorBoardIfAsked) {
  const TemporaryFolder folder;
  TrainConfig config = small_training(4);
  for (const bool wanted : {false, true}) {
    config.tensorboard = wanted;
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer(model, config, quiet(folder.path())).run(random_rows(13, 37), 4);
    EXPECT_EQ(std::filesystem::exists(folder.path() / "tensorboard"), wanted);
  }
  std::string events;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "tensorboard")) {
    events += read_text(entry.path());
  }
  const auto row = metrics(folder.path()).back();
  for (const auto& [key, value] : row.items()) {
    if (key == "step" || key == "time" || key == "model") continue;
    EXPECT_NE(events.find(key), std::string::npos) << key;
  }
}

TEST(TrainerTest, RefusesUnevenShares) {
  Transformer model(tiny_model(), DeviceConfig(), 1);
  TrainConfig config = small_training(1);
  config.micro_batch_size = 3;
  EXPECT_THROW(Trainer(model, config, quiet()), Error);
  config.micro_batch_size = 0;
  TrainOptions options = quiet();
  options.group.size = 3;
  EXPECT_THROW(Trainer(model, config, options), Error);
}

TEST(TrainerTest, StopsAtALossThatIsNotFinite) {
  Transformer model(tiny_model(), DeviceConfig(), 1);
  TrainConfig config = small_training(50);
  config.lr = 1e30;
  config.warmup_steps = 0;
  try {
    Trainer(model, config, quiet()).run(random_rows(13, 37), 50);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("step"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("not finite"), std::string::npos) << error.what();
  }
}

// Padding dilutes neither the loss nor the gradient: with a row of nothing else beside it, a row is
// trained on as if alone, by one rank or by two of which one has nothing that counts.
TEST(TrainerTest, PaddingCountsForNothing) {
  ModelConfig config = tiny_model();
  config.document_end = 5;
  const auto row = random_tokens(13, 37, 11);
  const RowSource alone{13, [&](int64_t, int64_t count, std::span<int64_t> tokens) {
                          for (int64_t i = 0; i < count; ++i) {
                            std::ranges::copy(row, tokens.begin() + i * 13);
                          }
                        }};
  const RowSource padded{13, [&](int64_t first, int64_t count, std::span<int64_t> tokens) {
                           std::ranges::fill(tokens, 5);
                           for (int64_t i = first % 2; i < count; i += 2) {
                             std::ranges::copy(row, tokens.begin() + i * 13);
                           }
                         }};
  const auto train = [&](const RowSource& rows, int64_t batch, int ranks) {
    TrainConfig training = small_training(5);
    training.batch_size = batch;
    training.grad_clip = 0.5;  // norms count
    std::pair<std::map<std::string, std::vector<float>>, double> result;
    run_thread_ranks(ranks, [&](const HostCollectives& group) {
      Transformer model(config, DeviceConfig(), 1);
      TrainOptions options = quiet();
      options.group = group;
      Trainer trainer(model, training, options);
      const double loss = trainer.run(rows, 5).last_loss;
      if (group.rank == 0) result = {weights(model), loss};
    });
    return result;
  };
  const auto expected = train(alone, 1, 1);
  for (const int ranks : {1, 2}) {
    const auto [found, loss] = train(padded, 2, ranks);
    EXPECT_NEAR(loss, expected.second, 1e-6) << ranks;
    for (const auto& [name, values] : expected.first) {
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_NEAR(found.at(name)[i], values[i], 1e-6) << name << " " << ranks;
      }
    }
  }
}

}  // namespace
}  // namespace smalltalk
