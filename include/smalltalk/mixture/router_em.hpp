// Balanced hard EM of the routers (SmallTalk LM, algorithm 1). Round 1 deals its sequences out at
// random; in every round each router trains one pass over its part, on prefixes only; from round 2
// on the parts come from the balanced assignment of new sequences by the routers as they then are.
// Routers are never re-initialised. When the corpus has no new sequences left for a round, the next
// epoch begins, in another order, and the log says so.
//
// mixture knows no MPI: what the ranks do together comes in as functions.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/balanced_assignment.hpp"
#include "smalltalk/core/batch.hpp"
#include "smalltalk/core/collectives.hpp"
#include "smalltalk/core/experiment.hpp"
#include "smalltalk/core/score_matrix.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/lm/transformer.hpp"
#include "smalltalk/mixture/run_layout.hpp"

namespace smalltalk {

// What this process does among the ranks that hold the routers. The default is one process alone.
struct RouterHosting {
  std::vector<int> trains;  // routers that it trains
  std::vector<int> scores;  // routers that it scores with; contains `trains`
  int score_part = 0;       // it scores part score_part of score_parts of every chunk
  int score_parts = 1;
  bool leader = true;  // writes what all ranks have in common
  // Ranks that share one router: rank 0 trains it, then broadcasts the weights.
  HostCollectives block;
  // Collective. `mine`: for each router of `scores`, this process's part of the n scores. Every
  // process gets all scores [n, E].
  std::function<ScoreMatrix(int64_t n, std::span<const float> mine)> gather_scores;
  std::function<void()> barrier = [] {};

  // One process that hosts all of E routers.
  static RouterHosting alone(int64_t num_experts);
};

// The part of n rows that falls to `part` of `parts`: [first, last).
std::pair<int64_t, int64_t> part_of(int64_t n, int64_t part, int64_t parts);
// Joins what the processes gathered: for each process in order, for each of its routers, its part.
struct GatherPiece {
  std::vector<int> scores;
  int score_part = 0;
  int score_parts = 1;
};
ScoreMatrix join_scores(int64_t n, int64_t num_experts, std::span<const GatherPiece> layout,
                        std::span<const float> gathered);

// Log-likelihoods in nats of the first `count` rows under one model: [count, 2], the targets before
// token `split` and those from it on. A row's result depends neither on `count` nor on its place.
ScoreMatrix score_rows(const Transformer& model, const RowSource& rows, int64_t count,
                       int64_t split);
// Prefix log-likelihoods of sequences under one router, nats. [ids.size()]
std::vector<float> score_prefixes(const Transformer& router,
                                  const std::shared_ptr<const TokenFile>& tokens,
                                  std::span<const uint64_t> ids, int64_t seq_length,
                                  int64_t prefix_tokens);

// Trains the routers into layout.router(e) and writes a shard file and a line of routing.jsonl per
// round. Goes on from the last round that all routers have saved; does nothing if they are
// complete.
void train_routers(const Experiment& experiment, const std::shared_ptr<const TokenFile>& tokens,
                   const RunLayout& layout, const RouterHosting& hosting,
                   const Provenance& provenance);

// The ids of a round's chunk, ascending. Rounds count from 1. Sets *epoch.
std::vector<uint64_t> round_chunk(const Experiment& experiment, int64_t num_sequences,
                                  int64_t round, int64_t* epoch);

// Assigns all sequences of the token file with the finished routers and writes shards.h5 and
// sharding.json (leader).
void shard_corpus(const Experiment& experiment, const std::shared_ptr<const TokenFile>& tokens,
                  const RunLayout& layout, const RouterHosting& hosting,
                  const Provenance& provenance);

}  // namespace smalltalk
