// Checkpoints of a group of ranks: one file whose bytes do not depend on the ranks, of which each
// writes and reads its own share; and what is left when one of them fails.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>

#include "group_training.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"
#include "trainer_fixtures.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

// Buckets of 700 bytes, whose pieces begin and end inside tensors.
TrainOptions options_of(const HostCollectives& host, const fs::path& folder) {
  TrainOptions options = quiet(folder);
  options.bucket_bytes = 700;
  options.group = host;
  return options;
}

TrainConfig saving_every_second_step() {
  TrainConfig config = group_training_config(0);
  config.save_interval = 2;
  config.keep_last = 2;
  return config;
}

// Trains to `last` from the newest checkpoint; what each rank goes on from.
std::vector<int64_t> train(int ranks, const fs::path& folder, int64_t last) {
  std::vector<int64_t> resumed(static_cast<size_t>(ranks));
  run_thread_ranks(ranks, [&](const HostCollectives& host) {
    Transformer model(tiny_model(), DeviceConfig(), 1);
    Trainer trainer(model, saving_every_second_step(), options_of(host, folder));
    resumed[static_cast<size_t>(host.rank)] = trainer.resume();
    if (trainer.step() < last) trainer.run(few_rows(), last);
  });
  return resumed;
}

TEST(GroupCheckpointTest, KeepsItsBytesInGroupsOfAnySize) {
  for (const bool tied : {false, true}) {
    for (const int writers : {1, 2, 3, 4}) {
      SCOPED_TRACE(writers);
      const TemporaryFolder folder;
      const ModelConfig model_config = tiny_model(FeedForward::swiglu, tied);
      run_thread_ranks(writers, [&](const HostCollectives& host) {
        Transformer model(model_config, DeviceConfig(), 1);
        Trainer trainer(model, group_training_config(0), options_of(host, folder.path()));
        trainer.run(few_rows(), 5);
        trainer.checkpoint();
      });
      const std::string written =
          read_text(folder.path() / "checkpoints/step-00000005.safetensors");
      for (const int readers : {1, 2, 3, 4}) {
        const auto again = folder.path() / ("again" + std::to_string(readers));
        run_thread_ranks(readers, [&](const HostCollectives& host) {
          Transformer model(model_config, DeviceConfig(), 9);
          Trainer trainer(model, group_training_config(0), options_of(host, folder.path()));
          EXPECT_EQ(trainer.resume(), 5);
          trainer.save(again);
        });
        EXPECT_TRUE(written == read_text(again)) << readers;
      }
    }
  }
}

// Slices of a model are written as the whole is, and read from what others wrote.
TEST(GroupCheckpointTest, KeepsItsBytesHoweverExpertsAreCut) {
  const ModelConfig config = merging(tiny_model(), 3, 5);
  const TemporaryFolder folder;
  const auto with_trainer = [&](int ranks, bool cut, uint64_t seed, const auto& work) {
    run_thread_ranks(ranks, [&](const HostCollectives& host) {
      const ExpertSlice slice = cut ? ExpertSlice{host.rank, host.size} : ExpertSlice();
      Transformer model(config, DeviceConfig(), seed, slice);
      Trainer trainer(model, group_training_config(0), options_of(host, folder.path()));
      work(trainer);
    });
  };
  with_trainer(3, true, 1, [](Trainer& trainer) {
    trainer.run(few_rows(), 5);
    trainer.checkpoint();
  });
  const std::string written = read_text(folder.path() / "checkpoints/step-00000005.safetensors");
  for (const auto& [ranks, cut] : {std::pair{1, false}, {2, false}, {2, true}, {4, true}}) {
    SCOPED_TRACE(ranks);
    with_trainer(ranks, cut, 9, [&](Trainer& trainer) {
      EXPECT_EQ(trainer.resume(), 5);
      trainer.save(folder.path() / "again");
    });
    EXPECT_TRUE(written == read_text(folder.path() / "again"));
  }
}

TEST(GroupCheckpointTest, TheModelHasTheBytesOfOneThatIsSavedWhole) {
  const TemporaryFolder folder;
  const std::map<std::string, std::string> metadata = {{"smalltalk.seq_length", "12"}};
  for (const int ranks : {1, 2, 3, 4}) {
    SCOPED_TRACE(ranks);
    const fs::path whole = folder.path() / "whole", sharded = folder.path() / "sharded";
    run_thread_ranks(ranks, [&](const HostCollectives& host) {
      Transformer model(tiny_model(), DeviceConfig(), 1);
      Trainer trainer(model, group_training_config(0), options_of(host, {}));
      trainer.run(few_rows(), 3);
      trainer.save_model(sharded, metadata);
      if (host.rank == 0) model.save(whole, metadata);
    });
    for (const char* file : {"config.json", "model.safetensors"}) {
      EXPECT_TRUE(read_text(whole / file) == read_text(sharded / file)) << file;
    }
    EXPECT_EQ(names_in(sharded), names_in(whole));
  }
}

// Bytes that this thread has read so far, of files and else.
int64_t bytes_read() {
  std::ifstream file("/proc/thread-self/io");
  std::string key;
  int64_t value = -1;
  file >> key >> value;
  return key == "rchar:" ? value : -1;
}

TEST(GroupCheckpointTest, EachRankReadsItsShareAlone) {
  if (bytes_read() < 0) GTEST_SKIP() << "this system does not count what a thread reads";
  ModelConfig model_config = tiny_model();
  model_config.vocab_size = 5000;
  model_config.hidden_size = 64;
  const TemporaryFolder folder;
  const auto with_trainer = [&](const HostCollectives& host, const auto& work) {
    Transformer model(model_config, DeviceConfig(), 1);
    Trainer trainer(model, group_training_config(0), options_of(host, folder.path()));
    work(trainer);
  };
  with_trainer(HostCollectives(), [](Trainer& trainer) { trainer.checkpoint(); });
  const auto file = folder.path() / "checkpoints/step-00000000.safetensors";
  const auto size = static_cast<int64_t>(fs::file_size(file));
  constexpr int64_t kHeader = 40'000;  // which every rank reads, and what it reads of itself here
  ASSERT_GT(size, 100 * kHeader);
  for (const int ranks : {1, 3, 4}) {
    SCOPED_TRACE(ranks);
    run_thread_ranks(ranks, [&](const HostCollectives& host) {
      with_trainer(host, [&](Trainer& trainer) {
        const int64_t before = bytes_read();
        trainer.resume();
        const int64_t read = bytes_read() - before;
        EXPECT_GT(read, size / ranks - kHeader);
        EXPECT_LT(read, size / ranks + kHeader);
      });
    });
  }
}

TEST(GroupCheckpointTest, OfADamagedOneAllRanksUseTheOneBefore) {
  const TemporaryFolder folder;
  train(3, folder.path(), 5);
  const auto newest = folder.path() / "checkpoints/step-00000004.safetensors";
  const std::string whole = read_text(newest);
  const std::vector<int64_t> before(3, 2);
  EXPECT_EQ(train(3, folder.path(), 0), std::vector<int64_t>(3, 4));
  for (size_t i = 0; i < 24; ++i) {
    std::string damaged = whole;
    const size_t byte = i * (whole.size() - 1) / 23;
    damaged[byte] = static_cast<char>(damaged[byte] ^ 1 << i % 8);
    std::ofstream(newest, std::ios::binary) << damaged;
    EXPECT_EQ(train(3, folder.path(), 0), before) << "byte " << byte;
  }
  std::string unnamed = whole;  // without a hash it could be anything
  unnamed[unnamed.find("xxh3")] = 'y';
  for (const std::string& damaged : {std::string(), whole.substr(0, whole.size() - 1), unnamed}) {
    std::ofstream(newest, std::ios::binary) << damaged;
    EXPECT_EQ(train(3, folder.path(), 0), before) << damaged.size();
  }
  // It is written anew where the training comes by.
  EXPECT_EQ(train(2, folder.path(), 5), std::vector<int64_t>(2, 2));
  EXPECT_EQ(train(3, folder.path(), 0), std::vector<int64_t>(3, 4));
}

// Whether it is whole is found out all the same.
TEST(GroupCheckpointTest, OfAnotherShapeIsRefused) {
  const TemporaryFolder folder;
  train(3, folder.path(), 3);
  const auto complaint_of_larger = [&] {
    return complaint_of([&] {
      run_thread_ranks(3, [&](const HostCollectives& host) {
        ModelConfig larger = tiny_model();
        larger.vocab_size = 41;
        Transformer model(larger, DeviceConfig(), 1);
        Trainer(model, saving_every_second_step(), options_of(host, folder.path())).resume();
      });
    });
  };
  EXPECT_TRUE(mentions(complaint_of_larger(),
                       "step-00000002.safetensors' has no tensor "
                       "'adam_m.model.embed_tokens.weight' of the model's "
                       "shape"));
  const auto file = folder.path() / "checkpoints/step-00000002.safetensors";
  const std::string whole = read_text(file);
  for (const size_t from_end : {1, 30'000, 60'000}) {
    std::string damaged = whole;
    damaged[whole.size() - from_end] ^= 1;
    std::ofstream(file, std::ios::binary) << damaged;
    EXPECT_TRUE(mentions(complaint_of_larger(), "is damaged")) << from_end;
  }
}

// What rank 1 is told to write of step 4 leads to a full disk.
HostCollectives on_a_full_disk(HostCollectives host, const fs::path& link) {
  if (host.rank != 1) return host;
  host.all_gather_bytes = [gather = host.all_gather_bytes,
                           link = link.string()](std::span<const std::byte> mine) {
    auto bytes = gather(mine);
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (!text.ends_with("-step-00000004.safetensors")) return bytes;
    bytes.resize(sizeof(uint64_t) + link.size());  // where data begins, and the name
    std::memcpy(bytes.data() + sizeof(uint64_t), link.data(), link.size());
    return bytes;
  };
  return host;
}

TEST(GroupCheckpointTest, ARankThatCannotWriteEndsTheRunAndCostsNoCheckpoint) {
  const TemporaryFolder folder;
  const fs::path link = folder.path() / "full";
  fs::create_symlink("/dev/full", link);
  const std::string complaint = complaint_of([&] {
    run_thread_ranks(3, [&](const HostCollectives& host) {
      Transformer model(tiny_model(), DeviceConfig(), 1);
      Trainer trainer(model, saving_every_second_step(),
                      options_of(on_a_full_disk(host, link), folder.path()));
      trainer.run(few_rows(), 20);
    });
  });
  EXPECT_TRUE(mentions(complaint, "step-00000004.safetensors'"));
  EXPECT_TRUE(mentions(complaint, "No space left on device"));
  EXPECT_EQ(names_in(folder.path() / "checkpoints"),
            (std::vector<std::string>{"latest", "step-00000002.safetensors"}));
  EXPECT_EQ(train(2, folder.path(), 7), std::vector<int64_t>(2, 2));
  EXPECT_EQ(train(3, folder.path(), 0), std::vector<int64_t>(3, 6));
}

// The ranks learn from each other's steps that all have written: no later checkpoint and no end of
// the run is needed.
TEST(GroupCheckpointTest, GetsItsNameWhileTrainingGoesOn) {
  const TemporaryFolder folder;
  const fs::path file = folder.path() / "checkpoints/step-00000020.safetensors";
  const int64_t batch = group_training_config(0).batch_size;
  RowSource rows = few_rows();
  rows.read = [&, read = rows.read](int64_t first, int64_t count, std::span<int64_t> tokens) {
    if (first / batch > 50) throw Error("no more rows");
    for (int i = 0; i < 20 && first / batch > 30 && !fs::exists(file); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    read(first, count, tokens);
  };
  const std::string complaint = complaint_of([&] {
    run_thread_ranks(2, [&](const HostCollectives& host) {
      Transformer model(tiny_model(), DeviceConfig(), 1);
      TrainConfig config = group_training_config(0);
      config.save_interval = 20;
      config.keep_last = 3;
      Trainer trainer(model, config, options_of(host, folder.path()));
      trainer.run(rows, 60);
    });
  });
  EXPECT_TRUE(mentions(complaint, "no more rows") || mentions(complaint, "another rank failed"));
  EXPECT_TRUE(fs::exists(file));
  for (const std::string& name : names_in(folder.path() / "checkpoints")) {
    EXPECT_FALSE(name.starts_with(".tmp-")) << name;
  }
}

}  // namespace
}  // namespace smalltalk
