// Several models as one: trained, the same bits as one by one.
#include "smalltalk/lm/model/transformer_stack.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "fixtures.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

TrainConfig stack_training() {
  TrainConfig config;
  config.steps = 12;
  config.batch_size = 8;
  config.micro_batch_size = 4;
  config.lr = 1e-2;
  config.save_interval = 0;
  return config;
}

TrainOptions stack_options() {
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  return options;
}

// Rows that differ from model to model.
RowSource rows_of(int model) {
  RowSource rows = random_rows(17, 37);
  rows.read = [read = rows.read, model](int64_t first, int64_t count, std::span<int64_t> out) {
    read(first + 1000 * model, count, out);
  };
  return rows;
}

TEST(TransformerStackTest, TrainsLikeOneByOne) {
  const std::vector<uint64_t> seeds = {3, 4, 5};
  for (const int64_t threads : {1, 2, 4}) {  // the last: more threads than models
    SCOPED_TRACE(threads);
    DeviceConfig device;
    device.threads = threads;
    TransformerStack stack(tiny_model(), device, seeds);
    std::vector<std::unique_ptr<Trainer>> trainers;
    std::vector<Trainer*> pointers;
    std::vector<RowSource> rows;
    for (int i = 0; i < 3; ++i) {
      trainers.push_back(std::make_unique<Trainer>(stack[i], stack_training(), stack_options()));
      pointers.push_back(trainers.back().get());
      rows.push_back(rows_of(i));
    }
    train_stack(stack, pointers, rows, 5);
    train_stack(stack, pointers, rows, 12);

    DeviceConfig alone;  // a model has all threads only if there are more of them than models
    alone.threads = threads > 3 ? threads : 1;
    for (int i = 0; i < 3; ++i) {
      Transformer model(tiny_model(), alone, seeds[i]);
      Trainer(model, stack_training(), stack_options()).run(rows_of(i), 12);
      EXPECT_EQ(model.weights(), stack[i].weights()) << i;
      EXPECT_NE(model.weights(), Transformer(tiny_model(), alone, seeds[i]).weights());
    }
  }
}

TEST(TransformerStackTest, LogsThePhasesOfItsPasses) {
  const TemporaryFolder folder;
  const std::vector<uint64_t> seeds = {3};
  TransformerStack stack(tiny_model(), DeviceConfig(), seeds);
  TrainOptions options = stack_options();
  options.folder = folder.path();
  Trainer trainer(stack[0], stack_training(), options);
  Trainer* pointer = &trainer;
  const RowSource rows = rows_of(0);
  train_stack(stack, {&pointer, 1}, {&rows, 1}, 2);
  std::istringstream lines(read_text(folder.path() / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto row = nlohmann::json::parse(line);
    EXPECT_GT(row.at("time_metrics/forward(s)").get<double>(), 0) << line;
    EXPECT_GT(row.at("time_metrics/backward(s)").get<double>(), 0) << line;
  }
}

TEST(TransformerStackTest, LoadsModelsOfOneShape) {
  const TemporaryFolder folder;
  const Transformer a(tiny_model(), DeviceConfig(), 1), b(tiny_model(), DeviceConfig(), 2);
  const Transformer other(tiny_model(FeedForward::relu2), DeviceConfig(), 3);
  const std::vector<std::filesystem::path> folders = {folder.path() / "a", folder.path() / "b"};
  a.save(folders[0], {});
  b.save(folders[1], {});
  const auto stack = TransformerStack::load(folders, DeviceConfig());
  EXPECT_EQ((*stack)[0].weights(), a.weights());
  EXPECT_EQ((*stack)[1].weights(), b.weights());
  other.save(folders[1], {});
  try {
    TransformerStack::load(folders, DeviceConfig());
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(folders[1].string()), std::string::npos);
  }
}

}  // namespace
}  // namespace smalltalk
