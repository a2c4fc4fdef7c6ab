// Prefix scores by blocks of sequences, kept so that more data, one more router, a shorter prefix,
// other capacities or a crash recompute only what is missing. Block b holds sequences
// [b * block_sequences, min(N, (b + 1) * block_sequences)). In the folder:
//   store.json                {block_sequences}: chosen by whoever came first
//   <set>/set.json            {routers: [hash], prefixes: [tokens], seq_length, block_sequences}:
//                             routers that were scored together; <set> is the hash of all this
//   <set>/block-<8 digits>.h5 /scores float32 [P, n, R], nats: of prefix p, row i, router r of the
//                             set; attributes format, version, first_sequence, set, and tokens:
//                             the hash of what was scored
//   tokens-<content_hash>.h5  /blocks uint64 [blocks]: that hash of each block of a token file
// Every file is written atomically by one process, so readers need no locks. A file that is
// missing, of other tokens or damaged (which logs a warning) counts as not there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/score_matrix.hpp"

namespace smalltalk {

struct StoredScores {
  ScoreBlock<float> block;             // [rows, routers asked for]
  std::shared_ptr<const void> memory;  // that `block` lies in: keep it as long
};

// What is asked of one block.
struct StoredBlock {
  int64_t block = 0;
  int64_t rows = 0;  // sequences in it; the last block of a corpus may have grown
  // Of the tokens of these sequences, by the caller's choice of hash; the same for every prefix,
  // or scores of several prefixes are not found again.
  uint64_t tokens_hash = 0;
};

// Any number of processes may use one folder at once, each writing other blocks; one thread each.
class ScoreStore {
 public:
  // Creates the folder if needed. An existing store keeps its block_sequences; ranks that open a
  // new one together must pass the same. Errors: cannot be written to.
  ScoreStore(std::filesystem::path folder, int64_t seq_length, int64_t block_sequences);
  ~ScoreStore();
  ScoreStore(ScoreStore&&) noexcept;

  int64_t block_sequences() const;

  // Indices into `routers` (hashes of their weights) of those without scores of this block for
  // this prefix. Opens, and verifies, files of this block only.
  std::vector<size_t> missing_routers(const StoredBlock& block,
                                      std::span<const std::string> routers, int64_t prefix) const;

  // scores: [prefixes, rows, routers]. Overwrites what these routers had for this block.
  void write(const StoredBlock& block, std::span<const std::string> routers,
             std::span<const int64_t> prefixes, std::span<const float> scores);

  // Columns in the order of `routers`. Mapped if one file holds exactly these, else put together
  // in memory. Error: not all are there (see missing_routers()).
  StoredScores read(const StoredBlock& block, std::span<const std::string> routers, int64_t prefix);

  // StoredBlock::tokens_hash of each block of the token file with this content_hash.
  std::optional<std::vector<uint64_t>> read_block_hashes(const std::string& content_hash) const;
  void write_block_hashes(const std::string& content_hash, std::span<const uint64_t> hashes) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
