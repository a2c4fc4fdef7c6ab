// A run that was cut short and resumed equals the unbroken one; which checkpoints are kept, used
// and refused.
#include <gtest/gtest.h>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"
#include "trainer_fixtures.hpp"

namespace smalltalk {
namespace {

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

// However often it is started again, a training ends at the same step.
TEST(TrainerTest, ABlowUpIsNotForgottenByARestart) {
  const TemporaryFolder folder;
  TrainConfig config = diverging_training(60);
  config.save_interval = 3;
  config.skip_nonfinite = true;
  std::string first;
  for (int start = 0; start < 4; ++start) {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, config, quiet(folder.path()));
    EXPECT_EQ(trainer.resume() > 0, start > 0);
    try {
      trainer.run(random_rows(13, 37), 60);
      ADD_FAILURE() << "trained on";
    } catch (const Error& error) {
      if (start == 0) first = error.what();
      EXPECT_EQ(error.what(), first);
      EXPECT_NE(first.find("So were the 10 steps before it"), std::string::npos) << first;
    }
  }
}

TEST(TrainerTest, KeepsTheNewestCheckpointsAndEveryKth) {
  const TemporaryFolder folder;
  TrainConfig config = small_training(20);
  config.save_interval = 2;
  config.keep_last = 3;
  config.keep_every = 5;  // whether they are saved by their interval or not
  Transformer model(tiny_model(), DeviceConfig(), 1);
  Trainer trainer(model, config, quiet(folder.path()));
  trainer.run(random_rows(13, 37), 14);
  const auto checkpoints = folder.path() / "checkpoints";
  EXPECT_EQ(
      names_in(checkpoints),
      (std::vector<std::string>{"latest", "step-00000005.safetensors", "step-00000010.safetensors",
                                "step-00000012.safetensors", "step-00000014.safetensors"}));
  EXPECT_EQ(std::filesystem::read_symlink(checkpoints / "latest"), "step-00000014.safetensors");
  trainer.clear_checkpoints();
  EXPECT_EQ(names_in(checkpoints), (std::vector<std::string>{"latest", "step-00000005.safetensors",
                                                             "step-00000010.safetensors"}));
}

// What has been trained so far, to its end or not, goes on as if it had been planned that long.
TEST(TrainerTest, MoreStepsEqualThoseOfALongerPlan) {
  const RowSource rows = random_rows(13, 37);
  struct Case {
    Decay decay;
    int64_t decay_steps;
    int64_t begun;  // of the 12 steps
    int64_t from;   // where it goes on
  };
  for (const Case& of : {Case{Decay::constant, 0, 12, 12}, Case{Decay::constant, 0, 7, 6},
                         Case{Decay::wsd, 5, 12, 7}, Case{Decay::wsd_sqrt, 5, 12, 7},
                         Case{Decay::wsd, 5, 10, 7}, Case{Decay::wsd, 5, 6, 6}}) {
    SCOPED_TRACE(to_string(of.decay) + " " + std::to_string(of.begun));
    const TemporaryFolder folder;
    TrainConfig shorter = small_training(12), longer = small_training(20);
    for (TrainConfig* config : {&shorter, &longer}) {
      config->lr_decay = of.decay;
      config->decay_steps = of.decay_steps;
      config->save_interval = 2;
      config->keep_last = 1;
      config->keep_every = 10;  // one that is beyond the stable phase lies in the way
    }
    const auto trained = [&](const std::string& name, const TrainConfig& config, int64_t last,
                             int64_t from) {
      TrainOptions options = quiet(folder.path() / name);
      options.keeps_stable_phase = true;
      Transformer model(tiny_model(), DeviceConfig(), 1);
      Trainer trainer(model, config, options);
      EXPECT_EQ(trainer.resume(), from);
      trainer.run(rows, last);
      if (last == config.steps) trainer.clear_checkpoints();
      return weights(model);
    };
    trained("grown", shorter, of.begun, 0);
    EXPECT_EQ(trained("grown", longer, 20, of.from), trained("planned", longer, 20, 0));
    EXPECT_EQ(names_in(folder.path() / "grown/checkpoints"),
              names_in(folder.path() / "planned/checkpoints"));
  }
}

TEST(TrainerTest, RefusesToStretchADecayThatHasBegun) {
  const TemporaryFolder folder;
  const RowSource rows = random_rows(13, 37);
  const auto train = [&](int64_t steps, int64_t last) {
    TrainConfig config = small_training(steps);
    config.save_interval = 2;
    config.keep_last = 1;
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, config, quiet(folder.path()));
    trainer.resume();
    trainer.run(rows, last);
  };
  train(20, 3);
  train(30, 4);  // 2 steps of warm-up lay behind it
  EXPECT_THROW(train(40, 6), Error);
  train(30, 6);
}

// Damaged ones beyond would count as the newest.
TEST(TrainerTest, ADamagedCheckpointIsNotKeptInPlaceOfAWholeOne) {
  const TemporaryFolder folder;
  TrainConfig config = small_training(20);
  config.save_interval = 10;
  config.keep_last = 1;
  const RowSource rows = random_rows(13, 37);
  const auto train = [&](int64_t last) {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, config, quiet(folder.path()));
    const int64_t step = trainer.resume();
    trainer.run(rows, last);
    return step;
  };
  train(10);
  write_text_atomically(folder.path() / "checkpoints/step-00000019.safetensors", "damaged");
  config.save_interval = 6;
  EXPECT_EQ(train(13), 10);
  EXPECT_EQ(names_in(folder.path() / "checkpoints"),
            (std::vector<std::string>{"latest", "step-00000012.safetensors"}));
  EXPECT_EQ(train(14), 12);
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

}  // namespace
}  // namespace smalltalk
