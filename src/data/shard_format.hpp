// What the writer and the readers of shard files share. Private to src/data.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "smalltalk/data/shard_file.hpp"

namespace smalltalk {

inline constexpr const char* kShardFormat = "smalltalk shards";

// The members of Shards, in memory or mapped.
struct ShardView {
  std::span<const uint16_t> expert;
  std::span<const uint64_t> offsets;
  std::span<const uint64_t> sequences;
  std::span<const uint64_t> chunk;
};

// /expert, /offsets and /sequences say the same thing twice. Where they differ; empty if nowhere.
std::string shards_disagreement(const ShardView& shards);

// XXH3 of N, /offsets, the checksums of /expert, and those of /chunk if there is one.
std::string shards_content_hash(std::span<const uint64_t> offsets,
                                std::span<const uint64_t> expert_checksums,
                                std::span<const uint64_t> chunk_checksums);

}  // namespace smalltalk
