// An assignment on its way into a shard file: the same for scores of routers (sharding.hpp), of
// clusters (tfidf.hpp) and of a file (the job `assign`).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/data/shard_file.hpp"

namespace smalltalk {

// The first sequences of a corpus, if they keep the experts that they have in a shard file, and
// only those after them are assigned.
struct KeptSequences {
  std::filesystem::path shards;  // empty: none are kept
  std::string content_hash;      // of `shards`
  int64_t count = 0;
  std::vector<int64_t> by_expert;  // [E]
};
KeptSequences keep_none(int64_t num_experts);
// Error: as read_shard_info().
KeptSequences keep_sequences(const std::filesystem::path& shards);

// [E] sequences of each expert, kept and assigned.
std::vector<int64_t> shard_sizes(const KeptSequences& kept, const AssignmentOutcome& outcome);

// The request that a shard file was made for, the entry of that name in its provenance; empty if
// there is none, or no such file.
std::string request_of(const std::filesystem::path& shards);

// Writes the shard file of the kept sequences and, behind them, of every rank's own in rank order.
// Rank 0 writes; it holds the kept file, and of what the others send some 16 MB at a time.
// Collective.
void write_assignment(const std::filesystem::path& path, const KeptSequences& kept,
                      const AssignmentOutcome& outcome, const HostCollectives& world,
                      const Provenance& provenance);

}  // namespace smalltalk
