// The EM's pure pieces, and the whole loop on one process with text of two kinds that a router can
// tell apart at a glance.
#include "smalltalk/mixture/router_em.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>

#include "mixture_fixture.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {
namespace {

TEST(PartOf, TilesAllRowsInOrder) {
  for (const int64_t n : {0, 1, 63, 64, 65, 1000}) {
    for (const int64_t parts : {1, 2, 3, 7}) {
      int64_t next = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const auto [first, last] = part_of(n, part, parts);
        EXPECT_EQ(first, next);
        EXPECT_LE(first, last);
        next = last;
      }
      EXPECT_EQ(next, n);
    }
  }
}

TEST(JoinScores, PutsEachPieceInItsPlace) {
  // Three processes: one scores router 0 alone, two share router 1.
  const int64_t n = 130;
  const std::vector<GatherPiece> layout = {{{0}, 0, 1}, {{1}, 0, 2}, {{1}, 1, 2}};
  std::vector<float> gathered;
  for (const GatherPiece& piece : layout) {
    const auto [first, last] = part_of(n, piece.score_part, piece.score_parts);
    for (int64_t i = first; i < last; ++i) {
      gathered.push_back(static_cast<float>(1000 * piece.scores[0] + i));
    }
  }
  const ScoreMatrix scores = join_scores(n, 2, layout, gathered);
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(scores.row(i)[0], static_cast<float>(i));
    EXPECT_EQ(scores.row(i)[1], static_cast<float>(1000 + i));
  }
}

TEST(JoinScores, RefusesMissingAndSurplusValues) {
  const std::vector<GatherPiece> layout = {{{0, 1}, 0, 1}};
  EXPECT_THROW(join_scores(4, 2, layout, std::vector<float>(7)), Error);
  EXPECT_THROW(join_scores(4, 2, layout, std::vector<float>(9)), Error);
  EXPECT_THROW(join_scores(4, 3, layout, std::vector<float>(8)), Error);
}

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
  train_routers(experiment, tokens, layout, RouterHosting::alone(2), {});
  shard_corpus(experiment, tokens, layout, RouterHosting::alone(2), {});
  // One router for all, or two for random halves, cannot do better than log 1/2 per sequence.
  const auto report = nlohmann::json::parse(read_text(layout.sharding_report()));
  EXPECT_GT(report.at("mean_score").get<double>(), 0.5 * std::log(0.5));
  const Shards shards = read_shards(layout.shards());
  EXPECT_LE(shards.of_expert(0).size() - shards.of_expert(1).size(), 1u);
}

TEST_F(RouterEm, EveryRoundIsBalancedAndLogged) {
  train_routers(experiment, tokens, layout, RouterHosting::alone(2), {});
  std::ifstream log(layout.routing_log());
  int64_t round = 0;
  for (std::string line; std::getline(log, line);) {
    const auto row = nlohmann::json::parse(line);
    EXPECT_EQ(row.at("round").get<int64_t>(), ++round);
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
}

TEST_F(RouterEm, StoppedAndStartedAgainEndsWithTheSameBytes) {
  train_routers(experiment, tokens, layout, RouterHosting::alone(2), {});
  const std::string whole = read_text(layout.router(1) / "model.safetensors");

  // A second run is stopped when its third round gathers scores.
  RunLayout second{folder / "second"};
  RouterHosting hosting = RouterHosting::alone(2);
  int gathers = 0;
  hosting.gather_scores = [&, inner = hosting.gather_scores](int64_t n,
                                                             std::span<const float> mine) {
    if (++gathers == 2) throw Error("stopped by the test");
    return inner(n, mine);
  };
  EXPECT_THROW(train_routers(experiment, tokens, second, hosting, {}), Error);
  EXPECT_FALSE(std::filesystem::exists(second.router(1) / "model.safetensors"));
  train_routers(experiment, tokens, second, RouterHosting::alone(2), {});
  EXPECT_EQ(read_text(second.router(1) / "model.safetensors"), whole);
}

TEST_F(RouterEm, ScoresDoNotDependOnTheParts) {
  train_routers(experiment, tokens, layout, RouterHosting::alone(2), {});
  const Transformer router = Transformer::load(layout.router(0), experiment.device);
  std::vector<uint64_t> ids(200);
  std::iota(ids.begin(), ids.end(), uint64_t{0});
  const auto score = [&](std::span<const uint64_t> some) {
    return score_prefixes(router, tokens, some, experiment.data.seq_length,
                          experiment.mixture.prefix_tokens);
  };
  const std::vector<float> all = score(ids);
  for (const int64_t parts : {2, 3}) {
    std::vector<float> joined;
    for (int64_t part = 0; part < parts; ++part) {
      const auto [first, last] = part_of(200, part, parts);
      const auto piece = score(
          std::span(ids).subspan(static_cast<size_t>(first), static_cast<size_t>(last - first)));
      joined.insert(joined.end(), piece.begin(), piece.end());
    }
    EXPECT_EQ(joined, all);
  }
}

}  // namespace
}  // namespace smalltalk
