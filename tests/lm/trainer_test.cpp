// The training loop: it learns, resumes exactly, and a group computes what one rank computes.
#include "smalltalk/lm/train/trainer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "fixtures.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

TrainConfig small_training(int64_t steps) {
  TrainConfig config;
  config.steps = steps;
  config.batch_size = 8;
  config.warmup_steps = 2;
  config.log_interval = 3;
  config.save_interval = 0;
  return config;
}

TrainOptions quiet(const std::filesystem::path& folder = {}) {
  TrainOptions options;
  options.name = "test";
  options.folder = folder;
  options.show_progress = false;
  return options;
}

std::map<std::string, std::vector<float>> weights(const Transformer& model) {
  std::map<std::string, std::vector<float>> result;
  for (const auto& [name, span] : model.parameters()) result[name].assign(span.begin(), span.end());
  return result;
}

std::vector<nlohmann::json> metrics(const std::filesystem::path& folder) {
  std::ifstream file(folder / "metrics.jsonl");
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(file, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

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

TEST(TrainerTest, ResumedEqualsUnbroken) {
  const TemporaryFolder folder;
  const RowSource rows = random_rows(13, 37);
  const TrainConfig config = small_training(10);

  Transformer whole(tiny_model(), DeviceConfig(), 1);
  Trainer unbroken(whole, config, quiet(folder.path() / "whole"));
  EXPECT_EQ(unbroken.resume(), 0);
  const TrainSummary expected = unbroken.run(rows, 10);

  TrainConfig saving = config;
  saving.save_interval = 4;
  {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, saving, quiet(folder.path() / "cut"));
    trainer.resume();
    trainer.run(rows, 7);  // saves at 4, is killed at 7
  }
  Transformer model(tiny_model(), DeviceConfig(), 99);  // weights come from the checkpoint
  Trainer trainer(model, saving, quiet(folder.path() / "cut"));
  EXPECT_EQ(trainer.resume(), 4);
  const TrainSummary summary = trainer.run(rows, 10);
  EXPECT_EQ(weights(model), weights(whole));
  EXPECT_EQ(summary.last_loss, expected.last_loss);
  EXPECT_EQ(summary.tokens, expected.tokens);

  // Each logged step once, with the same figures.
  const auto a = metrics(folder.path() / "whole"), b = metrics(folder.path() / "cut");
  ASSERT_EQ(a.size(), 5U);  // steps 1, 3, 6, 9, 10
  ASSERT_EQ(b.size(), 5U);
  for (size_t i = 0; i < a.size(); ++i) {
    for (const char* key : {"step", "tokens", "loss_metrics/global_avg_loss", "grad_norm", "lr"}) {
      EXPECT_EQ(a[i].at(key), b[i].at(key)) << key;
    }
    for (const char* key :
         {"time", "model", "loss_metrics/global_max_loss", "throughput(tps)", "tflops", "mfu(%)",
          "time_metrics/end_to_end(s)", "time_metrics/data_loading(s)", "time_metrics/forward(s)",
          "time_metrics/backward(s)", "time_metrics/communication(s)", "time_metrics/optimizer(s)",
          "memory/max_active(GiB)", "eta(s)"}) {
      EXPECT_TRUE(a[i].contains(key)) << key;
    }
  }
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

class GroupTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, GroupTest, testing::Values(2, 4));

TEST_P(GroupTest, EqualsOneRankWithinRounding) {
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

TEST(TrainerTest, PhasesAddUpToTheStep) {
  const TemporaryFolder folder;
  ModelConfig model_config = tiny_model();
  model_config.hidden_size = 64;  // large enough for the phases to outweigh what lies between them
  Transformer model(model_config, DeviceConfig(), 1);
  TrainConfig config = small_training(20);
  config.log_interval = 10;
  RowSource rows = random_rows(65, 37);
  const auto read = rows.read;
  rows.read = [read](int64_t first, int64_t count, std::span<int64_t> tokens) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    read(first, count, tokens);
  };
  Trainer(model, config, quiet(folder.path())).run(rows, 20);
  const auto row = metrics(folder.path()).at(2);
  ASSERT_EQ(row.at("step"), 20);
  double sum = 0;
  for (const char* phase : {"data_loading", "forward", "backward", "communication", "optimizer"}) {
    const double seconds = row.at(std::string("time_metrics/") + phase + "(s)");
    EXPECT_EQ(seconds > 0, std::string(phase) != "communication") << phase;  // nobody to talk to
    sum += seconds;
  }
  const double step = row.at("time_metrics/end_to_end(s)");
  EXPECT_GE(step, 0.02);  // reads of 30 ms, of which a few may be done before the interval begins
  EXPECT_LE(sum, step);
  EXPECT_GT(sum, 0.8 * step);
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

// Rows of one easy pattern, but noise in the steps named.
RowSource rows_with_noise(std::vector<int64_t> noisy_steps) {
  const RowSource noise = random_rows(13, 37);
  const auto read = [=](int64_t first, int64_t count, std::span<int64_t> tokens) {
    noise.read(first, count, tokens);
    if (std::ranges::count(noisy_steps, first / 8) > 0) return;
    for (int64_t i = 0; i < count * 13; ++i) {
      tokens[i] = (tokens[i / 13 * 13] % 2 + i % 13) % 37;  // counts from 0 or 1
    }
  };
  return {13, read};
}

std::vector<nlohmann::json> outliers(const std::filesystem::path& folder) {
  auto rows = metrics(folder);
  std::erase_if(rows, [](const auto& row) { return !row.contains("outlier/loss"); });
  return rows;
}

TEST(TrainerTest, ReportsOutliersAndLeavesTheirUpdatesOut) {
  const TemporaryFolder folder;
  TrainConfig config = small_training(200);
  config.lr_decay = Decay::constant;
  const auto train = [&](const std::string& name, const RowSource& rows, bool skip,
                         int64_t last_step) {
    config.outlier_skip = skip;
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, config, quiet(folder.path() / name));
    trainer.run(rows, last_step);
    if (last_step > 150) trainer.save(folder.path() / name / "end.safetensors");
    return weights(model);
  };
  const auto before = train("before", rows_with_noise({}), false, 150);
  EXPECT_TRUE(outliers(folder.path() / "before").empty());

  // Reported, and the update is made.
  const auto reported = train("reported", rows_with_noise({150}), false, 151);
  auto found = outliers(folder.path() / "reported");
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].at("step"), 151);
  EXPECT_EQ(found[0].at("outlier/skipped"), 0);
  EXPECT_GT(found[0].at("outlier/loss_zscore"), 6);
  EXPECT_GT(found[0].at("outlier/loss"), 2);
  EXPECT_NE(reported, before);

  // Left out: weights and moments as before the step.
  EXPECT_EQ(train("skipped", rows_with_noise({150}), true, 151), before);
  found = outliers(folder.path() / "skipped");
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].at("outlier/skipped"), 1);
  const auto end = read_safetensors(folder.path() / "skipped" / "end.safetensors");
  const auto reference = [&] {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, config, quiet());
    trainer.run(rows_with_noise({}), 150);
    trainer.save(folder.path() / "reference.safetensors");
    return read_safetensors(folder.path() / "reference.safetensors");
  }();
  ASSERT_EQ(end.tensors.size(), reference.tensors.size());
  for (const auto& [name, tensor] : reference.tensors) {
    EXPECT_EQ(tensor.values, end.tensors.at(name).values) << name;
  }
  EXPECT_EQ(end.metadata.at("skipped_steps"), "1");
  EXPECT_EQ(end.metadata.at("step"), "151");

  // What follows goes on as if the step had not been.
  const RowSource clean = rows_with_noise({}), noisy = rows_with_noise({150});
  const RowSource one_later{
      13, [=](int64_t first, int64_t count, std::span<int64_t> tokens) {
        const bool after = first / 8 > 150;
        (after ? clean : noisy).read(after ? first - 8 : first, count, tokens);
      }};
  EXPECT_EQ(train("with", one_later, true, 155), train("without", clean, true, 154));
}

TEST(TrainerTest, AResumedRunFindsTheSameOutliers) {
  const TemporaryFolder folder;
  const RowSource rows = rows_with_noise({190, 205});
  TrainConfig config = small_training(230);
  config.lr_decay = Decay::constant;
  config.outlier_skip = true;
  Transformer whole(tiny_model(), DeviceConfig(), 1);
  Trainer(whole, config, quiet(folder.path() / "whole")).run(rows, 230);
  const auto expected = outliers(folder.path() / "whole");
  ASSERT_EQ(expected.size(), 2U);

  config.save_interval = 100;
  {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer(model, config, quiet(folder.path() / "cut")).run(rows, 210);
  }
  Transformer model(tiny_model(), DeviceConfig(), 9);
  Trainer trainer(model, config, quiet(folder.path() / "cut"));
  EXPECT_EQ(trainer.resume(), 200);
  trainer.run(rows, 230);
  EXPECT_EQ(weights(model), weights(whole));
  const auto found = outliers(folder.path() / "cut");
  ASSERT_EQ(found.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    for (const char* key : {"step", "outlier/loss", "outlier/loss_zscore", "outlier/grad_norm",
                            "outlier/grad_norm_zscore", "outlier/skipped"}) {
      EXPECT_EQ(found[i].at(key), expected[i].at(key)) << key;
    }
  }
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

TEST_P(GroupTest, SkipsTheSameSteps) {
  const int size = GetParam();
  const TemporaryFolder folder;
  TrainConfig config = small_training(155);
  config.lr_decay = Decay::constant;
  config.outlier_skip = true;
  std::vector<std::map<std::string, std::vector<float>>> results(static_cast<size_t>(size));
  run_thread_ranks(size, [&](const HostCollectives& group) {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    TrainOptions options = quiet(folder.path());
    options.group = group;
    Trainer(model, config, options).run(rows_with_noise({150}), 155);
    results[static_cast<size_t>(group.rank)] = weights(model);
  });
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
  const auto found = outliers(folder.path());
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].at("step"), 151);
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

TEST(TrainerTest, RefusesForeignAndDamagedCheckpoints) {
  const TemporaryFolder folder;
  const auto file = folder.path() / "checkpoints/step-00000000.safetensors";
  TrainOptions options = quiet(folder.path());
  options.provenance = {{"shards", "a"}};
  Transformer model(tiny_model(), DeviceConfig(), 1);
  Trainer trainer(model, small_training(1), options);
  trainer.checkpoint();

  const auto expect_refusal = [&](TrainOptions with, const std::string& word) {
    Transformer fresh(tiny_model(), DeviceConfig(), 1);
    Trainer other(fresh, small_training(1), with);
    try {
      other.resume();
      FAIL() << word;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(file.string()), std::string::npos) << error.what();
    }
  };
  TrainOptions foreign = options;
  foreign.provenance["shards"] = "b";
  expect_refusal(foreign, "another run");
  foreign.provenance = {{"seed", "1"}};
  expect_refusal(foreign, "seed");
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  expect_refusal(options, "half-written");
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(TrainerTest, KeepsTheNewestCheckpointsAndEveryKth) {
  const TemporaryFolder folder;
  TrainConfig config = small_training(20);
  config.save_interval = 2;
  config.keep_last = 3;
  config.keep_every = 8;
  Transformer model(tiny_model(), DeviceConfig(), 1);
  Trainer trainer(model, config, quiet(folder.path()));
  trainer.run(random_rows(13, 37), 15);
  const auto checkpoints = folder.path() / "checkpoints";
  EXPECT_EQ(
      names_in(checkpoints),
      (std::vector<std::string>{"latest", "step-00000008.safetensors", "step-00000010.safetensors",
                                "step-00000012.safetensors", "step-00000014.safetensors"}));
  EXPECT_EQ(std::filesystem::read_symlink(checkpoints / "latest"), "step-00000014.safetensors");
  trainer.clear_checkpoints();
  EXPECT_EQ(names_in(checkpoints),
            (std::vector<std::string>{"latest", "step-00000008.safetensors"}));
}

// One flipped bit anywhere, and what a crash of the machine may leave.
TEST(TrainerTest, UsesTheCheckpointBeforeADamagedOne) {
  const TemporaryFolder folder;
  TrainConfig config = small_training(20);
  config.save_interval = 2;
  const RowSource rows = random_rows(13, 37);
  {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer(model, config, quiet(folder.path())).run(rows, 5);
  }
  const auto newest = folder.path() / "checkpoints/step-00000004.safetensors";
  const std::string whole = read_text(newest);
  const auto resumed_step = [&] {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    return Trainer(model, config, quiet(folder.path())).resume();
  };
  EXPECT_EQ(resumed_step(), 4);
  for (size_t i = 0; i < 40; ++i) {
    std::string damaged = whole;
    damaged[i * (whole.size() - 1) / 39] ^= static_cast<char>(1 << i % 8);
    write_text_atomically(newest, damaged);
    EXPECT_EQ(resumed_step(), 2) << "byte " << i * (whole.size() - 1) / 39;
  }
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, whole.size() - 1}) {
    write_text_atomically(newest, whole.substr(0, size));
    EXPECT_EQ(resumed_step(), 2) << size;
  }
  write_text_atomically(newest, std::string(whole.size(), '\0'));
  EXPECT_EQ(resumed_step(), 2);
  write_text_atomically(folder.path() / "checkpoints/step-00000002.safetensors", "");
  EXPECT_THROW(resumed_step(), Error);
}

TEST(TrainerTest, AFullDiskEndsTheRunWithTheReason) {
  const TemporaryFolder folder;
  TrainConfig config = small_training(200);
  config.save_interval = 1;
  Transformer model(tiny_model(), DeviceConfig(), 1);
  Trainer trainer(model, config, quiet(folder.path()));
  write_text_atomically(folder.path() / "checkpoints", "a file where the folder should be");
  try {
    trainer.run(random_rows(13, 37), 200);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("checkpoints"), std::string::npos) << error.what();
    EXPECT_LT(trainer.step(), 200);
  }
}

// Rows of one kind, and rows that stop the run when they are read.
RowSource stopping_rows(const RowSource& rows, int64_t stop_at_row) {
  return {rows.row_tokens, [rows, stop_at_row](int64_t first, int64_t count, auto out) {
            if (first >= stop_at_row) watch_for_stop({{}, {}, now_seconds()});
            rows.read(first, count, out);
          }};
}

TEST(TrainerTest, StoppedAnywhereEqualsUnbroken) {
  const RowSource rows = random_rows(13, 37);
  TrainConfig config = small_training(10);
  config.log_interval = 3;  // stops fall between two rows of the log
  const TemporaryFolder folder;
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(ranks);
    // Trains until done, beginning again after each stop, and returns the number of starts.
    const auto train = [&](const std::string& name, int64_t steps_before_a_stop) {
      int starts = 0;
      for (bool done = false; !done && starts < 10; ++starts) {
        watch_for_stop({});
        done = true;
        const auto train_rank = [&](const HostCollectives& group) {
          Transformer model(tiny_model(), DeviceConfig(), 1);
          TrainOptions options = quiet(folder.path() / name);
          options.group = group;
          Trainer trainer(model, config, options);
          const int64_t step = trainer.resume();
          EXPECT_GE(step, starts) << "no start without progress";
          try {
            const int64_t stop_at = (step + steps_before_a_stop) * config.batch_size;
            trainer.run(stopping_rows(rows, stop_at), 10);
            trainer.save(folder.path() / name / "end.safetensors");
          } catch (const Stopped&) {
            if (group.rank == 0) done = false;
          }
        };
        run_thread_ranks(ranks, train_rank);
      }
      watch_for_stop({});
      return starts;
    };
    const std::string whole = "whole" + std::to_string(ranks), cut = "cut" + std::to_string(ranks);
    EXPECT_EQ(train(whole, 1000), 1);
    EXPECT_GT(train(cut, 2), 2);
    EXPECT_EQ(read_text(folder.path() / cut / "end.safetensors"),
              read_text(folder.path() / whole / "end.safetensors"));
    const auto a = metrics(folder.path() / whole), b = metrics(folder.path() / cut);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      for (const char* key : {"step", "loss_metrics/global_avg_loss",
                              "loss_metrics/global_max_loss", "grad_norm", "lr"}) {
        EXPECT_EQ(a[i].at(key), b[i].at(key)) << key << " in row " << i;
      }
    }
  }
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

}  // namespace
}  // namespace smalltalk
