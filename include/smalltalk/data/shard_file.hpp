// shards.h5: which sequences of a token file belong to which expert. Indices only; tokens are never
// copied. Format (version 1):
//   /expert    uint16 [N]    the expert of each sequence (of each chunk entry in a round's file)
//   /offsets   uint64 [E+1]  expert e owns /sequences[offsets[e] .. offsets[e+1])
//   /sequences uint64 [N]    sequence ids, expert-major, ascending inside an expert
//   /chunk     uint64 [N]    only in a round's file: the ids, ascending, that /expert speaks of
//   provenance as string attributes (seed, hashes of tokens, routers, experiment, ...)
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

using Provenance = std::map<std::string, std::string>;

struct Shards {
  std::vector<uint16_t> expert;     // [N]
  std::vector<uint64_t> offsets;    // [E + 1]
  std::vector<uint64_t> sequences;  // [N]
  std::vector<uint64_t> chunk;      // [N] or empty: ids are 0 .. N - 1
  Provenance provenance;

  int64_t num_experts() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const uint64_t> of_expert(int64_t index) const;  // its sequence ids, ascending
};

// Groups an assignment by expert. `chunk` [N] ascending ids, or empty for 0 .. N - 1.
Shards make_shards(std::span<const uint16_t> assignment, int64_t num_experts,
                   std::span<const uint64_t> chunk, Provenance provenance);

// Written under a temporary name, flushed, renamed.
void write_shards(const std::filesystem::path& path, const Shards& shards);
// Checks that the three datasets agree. Error: missing, not a shard file, inconsistent.
Shards read_shards(const std::filesystem::path& path);

}  // namespace smalltalk
