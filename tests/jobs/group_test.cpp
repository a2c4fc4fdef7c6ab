// A group of MPI processes trains what one process trains.
#include <gtest/gtest.h>

#include <optional>

#include "../mpi_test.hpp"
#include "lm/group_training.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

// One folder for all ranks of a group, made and removed by the first. Collective.
class SharedFolder {
 public:
  explicit SharedFolder(const HostCollectives& group) {
    std::string name;
    if (group.rank == 0) name = made_.emplace().path().string();
    const auto bytes = group.all_gather_bytes(std::as_bytes(std::span(name)));
    path_ = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::optional<TemporaryFolder> made_;
  std::filesystem::path path_;
};

TEST(GroupTest, TrainsWhatOneProcessTrains) {
  Communicator& world = test_world();
  for (const ModelConfig& model :
       {tiny_model(FeedForward::swiglu, /*tied=*/false), merging(tiny_model(), 3, 5)}) {
    const Trained alone = train_in_group(HostCollectives(), model, 0);
    const Trained group = train_in_group(host_collectives(world), model, 1);
    expect_same_training(alone, group);

    // The same bits on every rank.
    std::vector<float> first = group.weights;
    world.broadcast(std::as_writable_bytes(std::span(first)), 0);
    EXPECT_EQ(first, group.weights);
  }
}

TEST(GroupTest, CutsExpertsAndTrainsWhatOneProcessTrains) {
  Communicator& world = test_world();
  const HostCollectives group = host_collectives(world);
  const SharedFolder shared(group);
  const ModelConfig model = merging(tiny_model(), 3, 5);
  const Trained alone = train_in_group(HostCollectives(), model, 0);
  const Trained cut = train_in_group(group, model, 1, 1024, {}, shared.path(), true);
  if (group.rank == 0) expect_same_training(alone, cut, kOtherEngine);
  group.barrier();
}

// The first steps are those of a plain model; each rank takes its share of what becomes of it.
TEST(GroupTest, ExpertsBeginAsAPlainModelOfAnyGroup) {
  Communicator& world = test_world();
  const HostCollectives group = host_collectives(world);
  const SharedFolder shared(group);
  const std::filesystem::path& folder = shared.path();
  const ModelConfig config = merging(tiny_model(), 3, 5);
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  options.bucket_bytes = 1024;
  options.folder = folder / "run";
  options.group = group;
  {
    Transformer plain(config.dense(), DeviceConfig(), 1);
    Trainer trainer(plain, group_training_config(0), options);
    trainer.run(few_rows(), 7);
    trainer.checkpoint();
  }
  options.dense_steps = 7;
  const auto begin = [&](const HostCollectives& ranks, const std::string& saved, bool cut) {
    options.group = ranks;
    const ExpertSlice slice = cut ? ExpertSlice{ranks.rank, ranks.size} : ExpertSlice();
    Transformer model(config, DeviceConfig(), 1, slice);
    Trainer trainer(model, group_training_config(0), options);
    EXPECT_EQ(trainer.resume(), 7);
    trainer.save(folder / saved);
  };
  begin(group, "group", false);
  begin(group, "cut", true);
  if (group.rank == 0) {
    begin(HostCollectives(), "alone", false);
    EXPECT_TRUE(read_text(folder / "group") == read_text(folder / "alone"));
    EXPECT_TRUE(read_text(folder / "cut") == read_text(folder / "alone"));
  }
  group.barrier();
}

TEST(GroupTest, WritesAndReadsOneCheckpointTogether) {
  Communicator& world = test_world();
  const HostCollectives group = host_collectives(world);
  const SharedFolder shared(group);
  const std::filesystem::path& folder = shared.path();

  // Goes on to `last` from what is there, and saves what it has come to.
  const auto train = [&](const HostCollectives& ranks, int64_t from, int64_t last,
                         const std::string& saved) {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    TrainConfig config = group_training_config(0);
    config.save_interval = 4;
    TrainOptions options;
    options.name = "test";
    options.show_progress = false;
    options.group = ranks;
    options.bucket_bytes = 1024;
    options.folder = folder / "run";
    Trainer trainer(model, config, options);
    EXPECT_EQ(trainer.resume(), from);
    if (from < last) trainer.run(few_rows(), last);
    trainer.save(folder / saved);
  };
  train(group, 0, 9, "end");
  train(group, 8, 8, "group");
  if (group.rank == 0) {
    train(HostCollectives(), 8, 8, "alone");
    const std::string checkpoint = read_text(folder / "run/checkpoints/step-00000008.safetensors");
    EXPECT_TRUE(read_text(folder / "group") == checkpoint);
    EXPECT_TRUE(read_text(folder / "alone") == checkpoint);
  }
  train(group, 8, 9, "end again");
  if (group.rank == 0) {
    EXPECT_TRUE(read_text(folder / "end") == read_text(folder / "end again"));
  }
  group.barrier();
}

}  // namespace
}  // namespace smalltalk
