// The control by counts of words: its shards do not depend on ranks, and its experts are only ever
// chosen by the clusters that they were trained with.
#include "smalltalk/mixture/routing/tfidf.hpp"

#include <gtest/gtest.h>

#include "mixture_fixture.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/mixture/run/units.hpp"
#include "support/complaint.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class Tfidf : public MixtureFixture {
 protected:
  void publish(const HostCollectives& world = {}, AssignmentMethod method = {}) {
    publish_tfidf_shards(run, world, {method});
  }

  fs::path clusters() const {
    const Provenance made_from = read_shard_info(layout.tfidf_shards()).provenance;
    return layout.tfidf_clusters(made_from.at("clusters"));
  }

  // The control's experts, or one of them.
  void train(int64_t expert = -1) {
    experiment.baselines.tfidf_shards = true;
    experiment.expert_train.steps = 1;
    for (const TrainUnit& unit : train_units(experiment, 100)) {
      if (unit.kind->rows != Rows::tfidf_shard || (expert >= 0 && unit.expert != expert)) continue;
      fs::remove_all(layout.model(unit.name));
      train_unit(run, unit, {});
    }
  }

  std::optional<TextClusters> of_control() const {
    return clusters_of_control(layout, train_units(experiment, 100));
  }
  std::string complaint() const {
    return complaint_of([&] { of_control(); });
  }
};

TEST_F(Tfidf, RanksDoNotShow) {
  publish();
  const std::string shards = read_text(layout.tfidf_shards());
  const std::string found = read_text(clusters());
  EXPECT_EQ(read_shard_info(layout.tfidf_shards()).sizes(), (std::vector<int64_t>{600, 599}));
  for (const int ranks : {2, 3}) {
    fs::remove_all(layout.root / "shards");
    fs::remove_all(layout.root / "tfidf");
    run_thread_ranks(ranks, [&](const HostCollectives& world) { publish(world); });
    EXPECT_EQ(read_text(layout.tfidf_shards()), shards) << ranks << " ranks";
    EXPECT_EQ(read_text(clusters()), found) << ranks << " ranks";
  }
}

TEST_F(Tfidf, ARerunComputesOnlyWhatIsMissing) {
  publish();
  const fs::path link = layout.tfidf_shards();
  const fs::path first = fs::read_symlink(link);
  const auto age = fs::last_write_time(clusters());
  const std::string found = read_text(clusters());
  publish(HostCollectives{}, AssignmentMethod::optimal);  // other shards of the same clusters
  EXPECT_NE(fs::read_symlink(link), first);
  publish();  // back to those that are there
  EXPECT_EQ(fs::read_symlink(link), first);
  EXPECT_EQ(fs::last_write_time(clusters()), age);

  ++experiment.seed;
  publish();
  EXPECT_NE(fs::read_symlink(link), first);
  EXPECT_NE(read_text(clusters()), found);
}

TEST_F(Tfidf, ExpertsAreChosenByTheirOwnClusters) {
  publish();
  train();
  const TextClusters chosen = of_control().value();
  // Whole sequences go mostly where they were sharded to; what cannot be told apart, in turn.
  const Assignment nearest = nearest_clusters(chosen, *run.tokens, kLength, kLength);
  const Assignment sharded = read_shards(layout.tfidf_shards()).expert;
  ASSERT_EQ(nearest.size(), sharded.size());
  int64_t same = 0;
  for (size_t i = 0; i < nearest.size(); ++i) same += nearest[i] == sharded[i] ? 1 : 0;
  EXPECT_GT(same, 1000);
  EXPECT_NE(nearest_clusters(chosen, *run.tokens, kLength, 4), nearest);

  // The current shards may be others by now.
  ++experiment.seed;
  publish();
  --experiment.seed;
  EXPECT_EQ(of_control().value().centres, chosen.centres);
  train(1);
  EXPECT_NE(complaint().find("expert 0 beside it"), std::string::npos) << complaint();
}

TEST_F(Tfidf, OtherClustersAreRefused) {
  publish();
  train();
  ASSERT_EQ(complaint(), "");
  const fs::path own = clusters();
  const std::string bytes = read_text(own);
  write_safetensors(own, {}, {});
  EXPECT_NE(complaint().find("are not the clusters"), std::string::npos) << complaint();
  std::string damaged = bytes;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
  write_text_atomically(own, damaged);
  EXPECT_NE(complaint().find(own.string()), std::string::npos) << complaint();
  write_text_atomically(own, bytes);
  EXPECT_EQ(complaint(), "");
  fs::remove(own);
  EXPECT_NE(complaint().find(own.string()), std::string::npos) << complaint();
  fs::remove_all(layout.root / "shards");
  EXPECT_NE(complaint().find("no longer in"), std::string::npos) << complaint();
}

}  // namespace
}  // namespace smalltalk
