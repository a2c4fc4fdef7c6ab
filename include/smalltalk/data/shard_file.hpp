// shards.h5: which sequences of a token file belong to which expert, and by what rule. Indices
// only; tokens are never copied. Format (version 2; all of it with checksums, see data/README.md):
//   /expert    uint16 [N]    the expert of each sequence (of each chunk entry in a round's file)
//   /offsets   uint64 [E+1]  expert e owns /sequences[offsets[e] .. offsets[e+1])
//   /sequences uint64 [N]    sequence ids, expert-major, ascending inside an expert
//   /chunk     uint64 [N]    only in a round's file: the ids, ascending, that /expert speaks of
//   /capacities uint64 [E], /prices float64 [E], /closing_expert uint16 [K], /closing_rank
//   uint32 [K], /closing_sequence uint64 [K]    the rule; absent where it has none of them
//   attributes: format, version, method, kept_sequences, content_hash, and provenance as text
//   (seed, hashes of tokens, routers, experiment, ...), under none of these names
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/provenance.hpp"

namespace smalltalk {

// All but what grows with the number of sequences.
struct ShardInfo {
  int64_t num_sequences = 0;
  std::vector<uint64_t> offsets;  // [E + 1]
  bool has_chunk = false;         // a round's file
  AssignmentRule rule;
  // The first ids, whose assignment was taken over from an older file; the rule is of the others.
  int64_t kept_sequences = 0;
  std::string content_hash;  // of who got what, and of nothing else
  Provenance provenance;

  int64_t num_experts() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t size_of(int64_t expert) const;  // sequences; Error if there is no such expert
  std::vector<int64_t> sizes() const;     // [E] of all
};

struct Shards {
  std::vector<uint16_t> expert;     // [N]
  std::vector<uint64_t> offsets;    // [E + 1]
  std::vector<uint64_t> sequences;  // [N]
  std::vector<uint64_t> chunk;      // [N] or empty: ids are 0 .. N - 1
  Provenance provenance;
  AssignmentRule rule;
  int64_t kept_sequences = 0;

  int64_t num_experts() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const uint64_t> of_expert(int64_t index) const;  // its sequence ids, ascending
};

// Groups an assignment by expert. `chunk` [N] ascending ids, or empty for 0 .. N - 1.
Shards make_shards(std::span<const uint16_t> assignment, int64_t num_experts,
                   std::span<const uint64_t> chunk, Provenance provenance, AssignmentRule rule = {},
                   int64_t kept_sequences = 0);

// Written under a temporary name, flushed, renamed. Error: the members do not agree.
void write_shards(const std::filesystem::path& path, const Shards& shards);

// All of a file, verified. Error: missing, not a shard file, damaged, inconsistent.
Shards read_shards(const std::filesystem::path& path);
// The sequence ids of one expert, ascending: reads them, verified, and little else.
std::vector<uint64_t> read_shard(const std::filesystem::path& path, int64_t expert);
// The expert of the sequence at one place of /expert.
uint16_t read_expert(const std::filesystem::path& path, int64_t sequence);
ShardInfo read_shard_info(const std::filesystem::path& path);

// Writes a shard file whose assignment comes piece by piece, in memory that does not grow with it
// (some 20 MB). The bytes do not depend on the pieces. Use it inside write_atomically().
class ShardWriter {
 public:
  // Errors name `shown`, the file's final place. counts: [E] sequences of each expert. chunk: [N]
  // as above, or empty; read until finish().
  ShardWriter(const std::filesystem::path& path, const std::filesystem::path& shown,
              std::span<const int64_t> counts, const AssignmentRule& rule, int64_t kept_sequences,
              std::span<const uint64_t> chunk, const Provenance& provenance);
  ~ShardWriter();

  // The experts of the next sequences. Error: more of an expert than was said.
  void add(std::span<const uint16_t> experts);
  // Closes the file. Error: fewer sequences than was said.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
