// Steps whose loss or gradient norm is an outlier are reported, and left out if the config says so.
#include <gtest/gtest.h>

#include "smalltalk/lm/model/safetensors.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"
#include "trainer_fixtures.hpp"

namespace smalltalk {
namespace {

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

class OutlierStepsInAGroup : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, OutlierStepsInAGroup, testing::Values(2, 4));

TEST_P(OutlierStepsInAGroup, SkipsTheSameSteps) {
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

}  // namespace
}  // namespace smalltalk
