// The EM's pure pieces, and the whole loop on one process with text of two kinds that a router can
// tell apart at a glance.
#include "smalltalk/mixture/routing/router_em.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>

#include "mixture_fixture.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "smalltalk/mixture/routing/sharding.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

TEST(RoundChunk, NeverRepeatsASequenceWithinAnEpoch) {
  Experiment experiment;
  experiment.mixture.sequences_per_round = 30;
  std::set<uint64_t> seen;
  int64_t epoch = -1;
  for (int64_t round = 1; round <= 3; ++round) {
    const auto chunk = round_chunk(experiment, 100, round, &epoch);
    EXPECT_EQ(epoch, 0);
    EXPECT_TRUE(std::is_sorted(chunk.begin(), chunk.end()));
    for (const uint64_t id : chunk) {
      EXPECT_LT(id, 100u);
      EXPECT_TRUE(seen.insert(id).second) << "sequence " << id << " twice";
    }
  }
  const auto next = round_chunk(experiment, 100, 4, &epoch);
  EXPECT_EQ(epoch, 1);
  EXPECT_NE(next, round_chunk(experiment, 100, 1, &epoch)) << "epochs have orders of their own";
}

TEST(RoundChunk, RefusesMoreThanTheCorpusHolds) {
  Experiment experiment;
  experiment.mixture.sequences_per_round = 101;
  int64_t epoch = 0;
  EXPECT_THROW(round_chunk(experiment, 100, 1, &epoch), Error);
}

class RouterEm : public MixtureFixture {};

TEST_F(RouterEm, FindsAPartitionThatNoSingleRouterCanMatch) {
  train_routers(run, RouterHosting::alone(2));
  shard_corpus(run, {}, {});
  // One router for all, or two for random halves, cannot do better than log 1/2 per sequence.
  const auto report = nlohmann::json::parse(read_text(layout.sharding_report()));
  EXPECT_GT(report.at("mean_score").get<double>(), 0.5 * std::log(0.5));
  const Shards shards = read_shards(layout.shards());
  EXPECT_LE(shards.of_expert(0).size() - shards.of_expert(1).size(), 1u);
}

TEST_F(RouterEm, EveryRoundIsBalancedAndLogged) {
  const double start = now_seconds();
  train_routers(run, RouterHosting::alone(2));
  const double all_rounds = now_seconds() - start;
  double seconds = 0;
  std::ifstream log(layout.routing_log());
  int64_t round = 0;
  for (std::string line; std::getline(log, line);) {
    const auto row = nlohmann::json::parse(line);
    EXPECT_EQ(row.at("round").get<int64_t>(), ++round);
    EXPECT_GT(row.at("seconds").get<double>(), 0);
    seconds += row.at("seconds").get<double>();
    const Shards shards = read_shards(layout.round(round));
    EXPECT_EQ(shards.of_expert(0).size(), shards.of_expert(1).size());
    EXPECT_EQ(static_cast<int64_t>(shards.chunk.size()), experiment.mixture.sequences_per_round);
    if (round > 1) {
      const auto argmax = row.at("argmax_counts").get<std::vector<int64_t>>();
      EXPECT_EQ(std::accumulate(argmax.begin(), argmax.end(), int64_t{0}),
                experiment.mixture.sequences_per_round);
      EXPECT_LE(row.at("mean_score").get<double>(), row.at("mean_best_score").get<double>());
    }
  }
  EXPECT_EQ(round, experiment.mixture.rounds);
  EXPECT_LE(seconds, all_rounds);  // parts of it by the same clock
}

// A router is what one training run makes of its rows laid end to end: of each round as many
// batches as its part fills, prefixes only, along one schedule for all rounds.
TEST_F(RouterEm, ARouterIsOneTrainingOnThePrefixesOfItsParts) {
  constexpr int64_t kRounds = 3, kSteps = 12;  // 12 batches of 8, and 4 sequences left
  experiment.mixture.rounds = kRounds;
  experiment.mixture.sequences_per_round = 2 * 100;
  experiment.router_train.lr_decay = Decay::cosine;
  experiment.router_train.warmup_steps = 5;
  train_routers(run, RouterHosting::alone(2));

  const int64_t prefix = experiment.mixture.prefix_tokens, batch = 8;
  TrainConfig config = experiment.router_train;
  config.steps = kRounds * kSteps;
  TrainOptions options;
  options.show_progress = false;
  for (const int64_t e : {0, 1}) {
    std::vector<int64_t> rows;  // [kRounds * kSteps * batch, prefix]
    for (int64_t round = 1; round <= kRounds; ++round) {
      const Shards parts = read_shards(layout.round(round));
      const auto part = parts.of_expert(e);
      ASSERT_EQ(part.size(), 100u);
      const RowSource shuffled =
          shuffled_rows(run.tokens, {part.begin(), part.end()}, kLength, prefix,
                        derive_seed(experiment.seed, "router order", static_cast<uint64_t>(e),
                                    static_cast<uint64_t>(round)));
      rows.resize(static_cast<size_t>(round * kSteps * batch * prefix));
      const std::span all(rows);
      shuffled.read(0, kSteps * batch, all.last(static_cast<size_t>(kSteps * batch * prefix)));
    }
    Transformer expected(experiment.router_model, experiment.device,
                         derive_seed(experiment.seed, "router init"));
    const auto read = [&](int64_t first, int64_t count, std::span<int64_t> out) {
      std::copy_n(rows.begin() + first * prefix, count * prefix, out.begin());
    };
    Trainer(expected, config, options).run({prefix, read}, config.steps);
    EXPECT_EQ(Transformer::load(layout.router(e), experiment.device).weights(), expected.weights());
  }
}

TEST_F(RouterEm, StoppedAndStartedAgainEndsWithTheSameBytes) {
  train_routers(run, RouterHosting::alone(2));
  const std::string whole = read_text(layout.router(1) / "model.safetensors");

  // A second run is stopped when its third round exchanges scores.
  auto second = run;
  second.layout.root = folder / "second";
  RouterHosting hosting = RouterHosting::alone(2);
  int exchanges = 0;
  hosting.world.all_to_all = [&, inner = hosting.world.all_to_all](std::span<const std::byte> mine,
                                                                   std::span<const int64_t> to) {
    if (++exchanges == 2) throw Error("stopped by the test");
    return inner(mine, to);
  };
  EXPECT_THROW(train_routers(second, hosting), Error);
  EXPECT_FALSE(std::filesystem::exists(second.layout.router(1) / "model.safetensors"));
  train_routers(second, RouterHosting::alone(2));
  EXPECT_EQ(read_text(second.layout.router(1) / "model.safetensors"), whole);
}

// Asked to stop again and again, wherever it happens to be, and on other numbers of ranks.
TEST_F(RouterEm, StoppedAnywhereEndsWithTheSameBytes) {
  const double start = now_seconds();
  train_routers(run, RouterHosting::alone(2));
  const double longest = (now_seconds() - start) / 5;  // that a start gets
  auto second = run;
  second.layout.root = folder / "second";
  int starts = 0;
  for (bool done = false; !done; ++starts) {
    ASSERT_LT(starts, 200);
    const double share = static_cast<double>(derive_seed(1, "stop", starts) % 1000) / 1000;
    watch_for_stop({{}, {}, now_seconds() + share * longest});
    const int size = 1 + starts % 2;
    std::atomic<int> stopped = 0;
    run_thread_ranks(size, [&](const HostCollectives& world) {
      RouterHosting hosting = RouterHosting::alone(2);
      hosting.world = world;
      if (size == 2) {
        hosting.trains = {world.rank};
        hosting.shares = {{{0}, 0, 1}, {{1}, 0, 1}};
      }
      try {
        train_routers(second, hosting);
      } catch (const Stopped&) {
        ++stopped;
      }
    });
    EXPECT_TRUE(stopped == 0 || stopped == size);
    done = stopped == 0;
  }
  watch_for_stop({});
  EXPECT_GT(starts, 1) << "it was never stopped";
  for (const int64_t e : {0, 1}) {
    EXPECT_EQ(read_text(second.layout.router(e) / "model.safetensors"),
              read_text(layout.router(e) / "model.safetensors"));
    EXPECT_FALSE(std::filesystem::exists(second.layout.router(e) / "checkpoints"));
  }
  // The log tells the same story, but for its seconds.
  const auto rows = [](const RunLayout& of) {
    std::vector<nlohmann::json> all;
    std::ifstream log(of.routing_log());
    for (std::string line; std::getline(log, line);) {
      all.push_back(nlohmann::json::parse(line));
      EXPECT_EQ(all.back().erase("seconds"), 1u);
      all.back().erase("selection");  // messages, which depend on the number of ranks
    }
    return all;
  };
  EXPECT_EQ(rows(second.layout), rows(layout));
}

}  // namespace
}  // namespace smalltalk
