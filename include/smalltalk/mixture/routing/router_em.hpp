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

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/train/transformer_stack.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// Which scores of a chunk a rank computes: those of some routers, on part `part` of `parts`.
struct ScoringShare {
  std::vector<int> routers;
  int part = 0;
  int parts = 1;
};

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

// The part of n rows that falls to `part` of `parts`: [first, last). Whole blocks of a forward
// pass.
std::pair<int64_t, int64_t> part_of(int64_t n, int64_t part, int64_t parts);

// A chunk's scores by rows: all routers' for this rank's slice of the n sequences, in 16 bits.
struct ScoreSlice {
  std::vector<uint16_t> codes;   // [rows, E]
  LocalScores<uint16_t> scores;  // over `codes`; ids are positions in the chunk
};
// Turns scores from columns (each rank has its routers', the paper's layout) to rows by one
// all-to-all, so that no rank ever holds all of them: it sends 2 bytes a score. `mine`: for each
// router of this rank's share, its part of the n scores. Collective.
ScoreSlice turn_scores(int64_t n, int64_t num_experts, std::span<const ScoringShare> shares,
                       std::span<const float> mine, const HostCollectives& world);
// The assignment of all n sequences from those of the slices. Collective.
Assignment join_slices(std::span<const uint16_t> mine, const HostCollectives& world);

class ScoringNotes;  // src/mixture/routing/scoring_notes.hpp

// Log-likelihoods in nats of the beginnings of the first `count` rows under one model:
// [count * P], those of the first prefixes[j] tokens. A row's result depends neither on `count` nor
// on its place. All of these throw Stopped if this process is asked to stop before the last rows;
// with `notes` they then keep what they have, and go on from there when they are called again.
std::vector<double> score_rows(const Transformer& model, const RowSource& rows, int64_t count,
                               std::span<const int64_t> prefixes, ScoringNotes* notes = nullptr);
// Log-likelihoods of the first prefixes[j] tokens of sequences under one router, nats.
// [ids.size() * P]; prefixes ascend.
std::vector<float> score_prefixes(const Transformer& router,
                                  const std::shared_ptr<const TokenFile>& tokens,
                                  std::span<const uint64_t> ids, int64_t seq_length,
                                  std::span<const int64_t> prefixes, ScoringNotes* notes = nullptr);

// The same of all routers of a stack, in one pass over the sequences: [R, ids.size() * P].
std::vector<float> score_prefixes(const TransformerStack& routers,
                                  const std::shared_ptr<const TokenFile>& tokens,
                                  std::span<const uint64_t> ids, int64_t seq_length,
                                  std::span<const int64_t> prefixes, ScoringNotes* notes = nullptr);

// Trains the routers into RUN/routers/<e> and writes a shard file and a line of routing.jsonl per
// round. A round's assignment is kept as soon as it is known, and every router saves its own
// training, so that a job that ended anywhere goes on from there with the same result; does nothing
// if the routers are complete. Throws Stopped, on all ranks, if any of them was asked to stop.
void train_routers(const Run& run, const RouterHosting& hosting);

// The ids of a round's chunk, ascending. Rounds count from 1. Sets *epoch.
std::vector<uint64_t> round_chunk(const Experiment& experiment, int64_t num_sequences,
                                  int64_t round, int64_t* epoch);

}  // namespace smalltalk
