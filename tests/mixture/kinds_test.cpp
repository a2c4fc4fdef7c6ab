// The table of kinds of models, and the units that it makes of an experiment.
#include "smalltalk/mixture/run/kinds.hpp"

#include <gtest/gtest.h>

#include <set>

#include "small_mixture.hpp"

namespace smalltalk {
namespace {

TEST(Kinds, NamesFoldersAndColoursAreDistinct) {
  std::set<std::string_view> names, folders, colours, looks;
  size_t in_charts = 0;
  for (const ModelKind& kind : model_kinds()) {
    EXPECT_TRUE(names.insert(kind.name).second) << kind.name;
    EXPECT_TRUE(folders.insert(kind.folder).second) << kind.name;
    EXPECT_EQ(find_kind(kind.name), &kind);
    if (kind.colour.name.empty()) continue;
    ++in_charts;
    colours.insert(kind.colour.name);
    looks.insert(kind.colour.light);
    looks.insert(kind.colour.dark);
  }
  EXPECT_EQ(colours.size(), in_charts);
  EXPECT_EQ(looks.size(), 2 * in_charts);
  EXPECT_EQ(find_kind("nobody"), nullptr);
  EXPECT_EQ(first_kind(Role::mixture).unit(3), "experts/3");
  EXPECT_EQ(first_kind(Role::router).unit(0), "routers/0");
  EXPECT_EQ(first_kind(Role::baseline).unit(0), "baselines/dense");
}

Experiment with_all_baselines() {
  Experiment experiment = small::experiment();
  experiment.baselines.dense_large_batch = experiment.baselines.tfidf_shards = true;
  experiment.baselines.dense_large_batch_lr = 0.5;
  return experiment;
}

TEST(Units, AreTheExpertsAndTheBaselinesThatAreAskedFor) {
  Experiment experiment = with_all_baselines();
  std::vector<std::string> names;
  for (const TrainUnit& unit : train_units(experiment, small::kTrainSequences)) {
    names.push_back(unit.name);
    EXPECT_EQ(unit.expert, unit.kind->one_for_each_expert ? unit.name.back() - '0' : -1);
  }
  EXPECT_EQ(names, (std::vector<std::string>{
                       "experts/0", "experts/1", "baselines/dense", "baselines/dense_large_batch",
                       "baselines/random_shards/0", "baselines/random_shards/1",
                       "baselines/tfidf_kmeans/0", "baselines/tfidf_kmeans/1"}));
  experiment.baselines = {.dense = false, .random_shards = false};
  EXPECT_EQ(train_units(experiment, small::kTrainSequences).size(), 2U);
}

// The FLOPs of the small mixture are 51,996. A step of two sequences takes 3 x 2 x 616 = 3,696:
// 14 steps are 51,744, too few, 15 are enough. A step of E x 2 takes 7,392: 7 are too few, 8 are
// enough. Of an expert's three steps one is warm-up: a third of 15, and of 8, rounded down.
TEST(Units, DenseModelsTakeTheMixturesFlopsOnTheSameSchedule) {
  const std::vector<TrainUnit> units = train_units(with_all_baselines(), small::kTrainSequences);
  const TrainConfig expert = find_unit(units, "experts/1").train;
  EXPECT_EQ(expert.steps, 3);
  EXPECT_EQ(expert.batch_size, 2);
  EXPECT_EQ(expert.warmup_steps, 1);
  const TrainConfig dense = find_unit(units, "baselines/dense").train;
  EXPECT_EQ(dense.steps, 15);
  EXPECT_EQ(dense.batch_size, 2);
  EXPECT_EQ(dense.warmup_steps, 5);
  EXPECT_EQ(dense.lr, expert.lr);
  const TrainConfig large = find_unit(units, "baselines/dense_large_batch").train;
  EXPECT_EQ(large.steps, 8);
  EXPECT_EQ(large.batch_size, 4);
  EXPECT_EQ(large.warmup_steps, 2);
  EXPECT_EQ(large.lr, 0.5);
  const TrainConfig control = find_unit(units, "baselines/random_shards/0").train;
  EXPECT_EQ(control.steps, 3);
  EXPECT_EQ(control.warmup_steps, 1);
}

}  // namespace
}  // namespace smalltalk
