// Balanced hard EM of the routers (SmallTalk LM, algorithm 1). Round 1 deals its sequences out at
// random; in every round each router trains one pass over its part, on prefixes only; from round 2
// on the parts come from the balanced assignment of new sequences by the routers as they then are.
// Routers are never re-initialised. When the corpus has no new sequences left for a round, the next
// epoch begins, in another order, and the log says so.
//
// mixture knows no MPI: what the ranks do together comes in as functions.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/routing/score_exchange.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// What this process does among the ranks that hold the routers. The default is one process alone.
struct RouterHosting {
  std::vector<int> trains;           // routers that it trains, among those that it scores with
  std::vector<ScoringShare> shares;  // of all ranks of `world`
  HostCollectives world;
  // Ranks that share one router: rank 0 trains it, then broadcasts the weights.
  HostCollectives block;

  const ScoringShare& share() const { return shares[static_cast<size_t>(world.rank)]; }
  bool leader() const { return world.rank == 0; }  // writes what all ranks have in common
  // One process that hosts all of E routers.
  static RouterHosting alone(int64_t num_experts);
};

// Trains the routers into RUN/routers/<e> and writes a shard file and a line of routing.jsonl per
// round. A round's assignment is kept as soon as it is known, and every router saves its own
// training, so that a job that ended anywhere goes on from there with the same result; does nothing
// if the routers are complete. Throws Stopped, on all ranks, if any of them was asked to stop.
void train_routers(const Run& run, const RouterHosting& hosting);

// The ids of a round's chunk, ascending. Rounds count from 1. Sets *epoch.
std::vector<uint64_t> round_chunk(const Experiment& experiment, int64_t num_sequences,
                                  int64_t round, int64_t* epoch);

}  // namespace smalltalk
