// The models of a stack train together as each trains alone: the same bytes, whatever is skipped
// and wherever they are stopped.
#include <gtest/gtest.h>

#include <memory>

#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"
#include "support/temporary_folder.hpp"
#include "trainer_fixtures.hpp"

namespace smalltalk {
namespace {

const std::vector<uint64_t> kSeeds = {3, 4, 5};

TrainConfig stack_training(int64_t steps) {
  TrainConfig config = small_training(steps);
  config.lr_decay = Decay::constant;
  config.micro_batch_size = 4;
  config.log_interval = 7;
  config.save_interval = 40;
  config.outlier_skip = true;
  return config;
}

// A stack with a trainer for each of its models, in folder/0, folder/1, ...
struct Stack {
  Stack(const TrainConfig& config, DeviceConfig device, const std::filesystem::path& folder) {
    device.threads = 2;
    models = std::make_unique<TransformerStack>(tiny_model(), device, kSeeds);
    for (int64_t i = 0; i < models->size(); ++i) {
      const TrainOptions options = quiet(folder / std::to_string(i));
      owned.push_back(std::make_unique<Trainer>((*models)[i], config, options));
      trainers.push_back(owned.back().get());
    }
  }
  std::unique_ptr<TransformerStack> models;
  std::vector<std::unique_ptr<Trainer>> owned;
  std::vector<Trainer*> trainers;
};

TEST(TrainStackTest, StoppedAnywhereEqualsEachModelAlone) {
  const TemporaryFolder folder;
  const TrainConfig config = stack_training(200);
  std::vector<RowSource> rows;
  for (int64_t i = 0; i < 3; ++i) {
    rows.push_back(rows_with_noise({180 + i}));
    Transformer model(tiny_model(), DeviceConfig(), kSeeds[i]);
    Trainer alone(model, config, quiet(folder.path() / "alone" / std::to_string(i)));
    alone.run(rows[i], 200);
    alone.save(folder.path() / "alone" / std::to_string(i) / "end.safetensors");
  }
  const std::vector<RowSource> all_rows = rows;
  int starts = 0;
  for (bool done = false; !done && starts < 10; ++starts) {
    watch_for_stop({});
    Stack stack(config, DeviceConfig(), folder.path() / "stack");
    const int64_t step = stack.trainers[0]->resume();
    EXPECT_GE(step, starts) << "no start without progress";
    for (Trainer* trainer : stack.trainers) EXPECT_EQ(trainer->resume(), step);
    rows[1] = stopping_rows(all_rows[1], (step + 60) * config.batch_size);
    try {
      train_stack(*stack.models, stack.trainers, rows, 200);
      done = true;
    } catch (const Stopped&) {
    }
    for (size_t i = 0; done && i < 3; ++i) {
      stack.trainers[i]->save(folder.path() / "stack" / std::to_string(i) / "end.safetensors");
    }
  }
  watch_for_stop({});
  EXPECT_GT(starts, 2);
  for (const std::string model : {"0", "1", "2"}) {
    const auto alone = folder.path() / "alone" / model, stacked = folder.path() / "stack" / model;
    EXPECT_EQ(read_text(stacked / "end.safetensors"), read_text(alone / "end.safetensors"));
    EXPECT_EQ(outliers(stacked).size(), 1U);
    const auto a = metrics(alone), b = metrics(stacked);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      for (const auto& [key, value] : a[i].items()) {
        const bool of_the_clock = key == "time" || key == "eta(s)" || key == "mfu(%)" ||
                                  key == "tflops" || key == "throughput(tps)" ||
                                  key.starts_with("time_metrics") || key.starts_with("memory");
        if (of_the_clock) continue;
        EXPECT_EQ(b[i].at(key), value) << key << " in row " << i;
      }
    }
  }
}

TEST(TrainStackTest, SavesAndTracesWhatWasAskedFor) {
  const TemporaryFolder folder;
  TrainConfig config = stack_training(20);
  config.save_interval = 6;
  config.keep_last = 2;
  DeviceConfig device;
  device.trace_steps = "2:4";
  Stack stack(config, device, folder.path());
  const std::vector<RowSource> rows(3, random_rows(13, 37));
  train_stack(*stack.models, stack.trainers, rows, 20);
  for (const std::string model : {"0", "1", "2"}) {
    EXPECT_EQ(names_in(folder.path() / model / "checkpoints"),
              (std::vector<std::string>{"latest", "step-00000012.safetensors",
                                        "step-00000018.safetensors"}));
  }
  // The first model has the trace of the pass over all of them.
  std::map<std::string, int> count;
  const auto trace = nlohmann::json::parse(read_text(folder.path() / "0" / "trace.json"));
  for (const auto& event : trace.at("traceEvents")) ++count[event.at("name")];
  EXPECT_EQ(count["wait for tokens"], 3 * 2 * 2);  // models x steps x micro-batches
  EXPECT_EQ(count["forward"], 3 * 2 * 2);
}

}  // namespace
}  // namespace smalltalk
