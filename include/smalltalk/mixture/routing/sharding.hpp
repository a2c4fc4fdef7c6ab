// The shards: which expert trains on which sequence of the corpus, found with the finished routers.
// Each rank scores blocks of sequences with all routers and keeps the scores in the run's score
// store; it assigns the rows of its slice together with the other ranks, without gathering scores.
//
// Reruns compute what is missing: scores are known by the hashes of router and tokens, for several
// prefix lengths. New text, another router, other capacities, a shorter prefix or a job that died
// half-way leave the rest alone; a rerun with nothing changed reads no tokens and writes nothing.
// A shard file is named after all that decides its content and never written again; shards.h5 is a
// link to the current one. Who trains keeps the file it began with.
#pragma once

#include <cstdint>
#include <vector>

#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

struct ShardOptions {
  AssignOptions assign;
  int64_t prefix_tokens = 0;   // route on so many tokens; 0: the routers' M. At most M.
  std::vector<double> shares;  // [E] relative sizes of the shards; empty: equal
  bool append = false;         // keep the assignment of shards.h5; assign only what is new
};

// Assigns all sequences of the training tokens with the finished routers; publishes shards.h5 and
// random_shards.h5 and writes sharding.json. Collective. Errors: routers missing; append without
// shards.h5, to other tokens than an extension of its own, or where an expert already has more
// than its new capacity. Throws Stopped, on all ranks, if any of them was asked to stop; the scores
// that were found by then are kept.
void shard_corpus(const Run& run, const HostCollectives& world, const ShardOptions& options);

}  // namespace smalltalk
