#include "smalltalk/mixture/routing/corpus_scores.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>
#include <numeric>

#include "mixture/routing/scoring_notes.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"
#include "smalltalk/mixture/routing/ngram_routing.hpp"
#include "smalltalk/mixture/routing/scoring.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kHashedTokens = int64_t{1} << 20;  // at a time

// Blocks are files: large enough not to be many, small enough that there is one for every rank.
int64_t block_size_for(int64_t num_sequences) {
  return static_cast<int64_t>(
      std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(num_sequences / 64, 256, 65536))));
}

// The blocks of a token file in the score store.
struct Blocks {
  int64_t num_sequences;
  int64_t block_sequences;
  int64_t count() const { return (num_sequences + block_sequences - 1) / block_sequences; }
  int64_t first(int64_t block) const { return block * block_sequences; }
  int64_t rows(int64_t block) const {
    return std::min(block_sequences, num_sequences - first(block));
  }
  std::vector<uint64_t> hashes = {};  // of each block's tokens
  StoredBlock stored(int64_t block) const {
    return {block, rows(block), hashes[static_cast<size_t>(block)]};
  }
};

// Hashes of all blocks' tokens: from the store, or from the tokens, each rank some blocks.
std::vector<uint64_t> token_hashes(const ScoreStore& store, const TokenFile& tokens,
                                   const Blocks& blocks, int64_t seq_length,
                                   const HostCollectives& world) {
  const std::string& content = tokens.info().content_hash;
  const auto known = store.read_block_hashes(content);
  if (first_rank_says(known.has_value(), world)) {
    if (!known) throw Error(fmt::format("the score store cannot be read by rank {}", world.rank));
    return *known;
  }
  const auto [begin, end] = part_of_range(blocks.count(), world.rank, world.size);
  std::vector<uint64_t> mine;
  run_together(world, [&] {
    for (int64_t block = begin; block < end; ++block) {
      stop_if_asked();
      mine.push_back(
          hash_of_sequences(tokens, blocks.first(block), blocks.rows(block), seq_length));
    }
  });
  const std::vector<uint64_t> all = gather_values<uint64_t>(mine, world);
  if (world.rank == 0) store.write_block_hashes(content, all);
  return all;
}

// Work that is left: a block, and the routers whose scores it lacks.
struct MissingScores {
  int64_t block;
  std::vector<size_t> routers;
};

// Each rank looks at some blocks; all get to know all.
std::vector<MissingScores> missing_scores(const ScoreStore& store, const Blocks& blocks,
                                          const std::vector<std::string>& routers, int64_t prefix,
                                          const HostCollectives& world) {
  std::vector<int64_t> mine;  // block, number of routers, routers ...
  for (int64_t block = world.rank; block < blocks.count(); block += world.size) {
    const auto missing = store.missing_routers(blocks.stored(block), routers, prefix);
    if (missing.empty()) continue;
    mine.push_back(block);
    mine.push_back(static_cast<int64_t>(missing.size()));
    mine.insert(mine.end(), missing.begin(), missing.end());
  }
  const std::vector<int64_t> gathered = gather_values<int64_t>(mine, world);
  std::vector<MissingScores> all;
  for (auto next = gathered.begin(); next != gathered.end(); next += 2 + next[1]) {
    all.push_back({next[0], {next + 2, next + 2 + next[1]}});
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.block < b.block; });
  return all;
}

// The number of scores in some blocks.
int64_t count_scores(const Blocks& blocks, std::span<const MissingScores> missing) {
  int64_t count = 0;
  for (const auto& [block, routers] : missing) {
    count += blocks.rows(block) * static_cast<int64_t>(routers.size());
  }
  return count;
}

// Columns [routers, rows, prefixes] as the store has them: [prefixes, rows, routers].
std::vector<float> by_prefix(std::span<const float> columns, size_t rows, size_t prefixes) {
  const size_t routers = columns.size() / (rows * prefixes);
  std::vector<float> scores(columns.size());
  for (size_t k = 0; k < routers; ++k) {
    for (size_t row = 0; row < rows; ++row) {
      for (size_t p = 0; p < prefixes; ++p) {
        scores[(p * rows + row) * routers + k] = columns[(k * rows + row) * prefixes + p];
      }
    }
  }
  return scores;
}

// Scores this rank's share of what is missing.
void fill_store(const Run& run, const HostCollectives& world, ScoreStore& store,
                const Blocks& blocks, const std::vector<std::string>& routers,
                std::span<const MissingScores> missing) {
  const Experiment& experiment = run.experiment;
  std::vector<MissingScores> mine;
  for (size_t i = static_cast<size_t>(world.rank); i < missing.size();
       i += static_cast<size_t>(world.size)) {
    mine.push_back(missing[i]);
  }
  if (mine.empty()) return;
  const int64_t total = count_scores(blocks, mine);
  const std::vector<int64_t> prefixes = kept_prefixes(experiment.mixture.prefix_tokens);
  // By which routers a block lacks: mostly the same for all.
  std::map<std::vector<size_t>, std::unique_ptr<TransformerStack>> stacks;
  Progress progress("scoring", total, "scores");
  int64_t done = 0;
  for (const auto& [block, of_routers] : mine) {
    std::vector<uint64_t> ids(static_cast<size_t>(blocks.rows(block)));
    std::iota(ids.begin(), ids.end(), static_cast<uint64_t>(blocks.first(block)));
    std::vector<std::string> names;
    std::vector<fs::path> folders;
    for (const size_t e : of_routers) {
      names.push_back(routers[e]);
      folders.push_back(run.layout.router(static_cast<int64_t>(e)));
    }
    std::unique_ptr<TransformerStack>& stack = stacks[of_routers];
    if (!stack) stack = TransformerStack::load(folders, experiment.device);
    ScoringNotes notes(
        run.layout.scoring_notes(fmt::format("block-{:06}", block)),
        fmt::format("{} {} {} {}", blocks.hashes[static_cast<size_t>(block)],
                    experiment.data.seq_length, fmt::join(prefixes, ","), fmt::join(names, ",")));
    const std::vector<float> columns =
        score_sequences(*stack, run.tokens, ids, experiment.data.seq_length, prefixes, &notes);
    done += static_cast<int64_t>(ids.size() * names.size());
    progress.update(done);
    store.write(blocks.stored(block), names, prefixes,
                by_prefix(columns, ids.size(), prefixes.size()));
    notes.remove();
    if (stop_requested() && done < total) throw Stopped();
  }
}

// This rank's slice, whole blocks; of the first block asked for only the rows asked for.
void read_slice(ScoreStore& store, const Blocks& blocks, const ScoreQuery& query,
                const HostCollectives& world, CorpusScores& scores) {
  const auto experts = static_cast<int64_t>(query.routers.size());
  scores.mine.num_experts = experts;
  const auto [begin, end] = part_of_range(blocks.count(), world.rank, world.size);
  for (int64_t block = begin; block < end; ++block) {
    if (blocks.first(block) + blocks.rows(block) <= query.first_sequence) continue;
    scores.storage.push_back(store.read(blocks.stored(block), query.routers, query.prefix));
    ScoreBlock<float> rows = scores.storage.back().block;
    const int64_t skip = std::max<int64_t>(0, query.first_sequence - blocks.first(block));
    rows.first_sequence += static_cast<uint64_t>(skip);
    rows.values = rows.values.subspan(static_cast<size_t>(skip * experts));
    scores.mine.blocks.push_back(rows);
  }
}

// Each rank learns the same, within seconds, and rates the sequences of its slice.
CorpusScores rate_corpus(const Run& run, const ScoreQuery& query, const HostCollectives& world) {
  const int64_t seq_length = run.experiment.data.seq_length;
  const int64_t n = run.tokens->num_sequences(seq_length);
  CorpusScores scores;
  run_together(world, [&] {
    const NgramClassifier classifier = learn_rounds(run);
    const auto [begin, end] = part_of_range(n - query.first_sequence, world.rank, world.size);
    const int64_t first = query.first_sequence + begin;
    scores.rated =
        rate_sequences(classifier, *run.tokens, seq_length, query.prefix, first, end - begin);
    scores.mine = {classifier.num_classes(), {{static_cast<uint64_t>(first), scores.rated}}};
  });
  return scores;
}

}  // namespace

CorpusScores corpus_scores(const Run& run, const ScoreQuery& query, const HostCollectives& world) {
  if (run.experiment.mixture.sharding == Sharding::ngrams) return rate_corpus(run, query, world);
  const int64_t seq_length = run.experiment.data.seq_length;
  const int64_t n = run.tokens->num_sequences(seq_length);
  ScoreStore store(run.layout.scores(), seq_length, block_size_for(n));
  Blocks blocks{n, store.block_sequences()};
  blocks.hashes = token_hashes(store, *run.tokens, blocks, seq_length, world);
  const auto missing = missing_scores(store, blocks, query.routers, query.prefix, world);

  CorpusScores scores;
  const int64_t all = n * static_cast<int64_t>(query.routers.size());
  scores.computed = count_scores(blocks, missing);
  scores.known = all - scores.computed;
  if (world.rank == 0) {
    log_info(fmt::format("{} sequences, {} routers, prefix {}: {} of {} scores are known", n,
                         query.routers.size(), query.prefix, scores.known, all));
  }
  run_together(world, [&] { fill_store(run, world, store, blocks, query.routers, missing); });
  read_slice(store, blocks, query, world, scores);
  return scores;
}

std::vector<int64_t> kept_prefixes(int64_t longest) {
  std::vector<int64_t> prefixes;
  for (const int64_t part : {8, 4, 2}) {
    if (longest / part >= 8) prefixes.push_back(longest / part);
  }
  prefixes.push_back(longest);
  return prefixes;
}

uint64_t hash_of_sequences(const TokenFile& tokens, int64_t first, int64_t count,
                           int64_t seq_length) {
  std::string hashes;  // of pieces, as a block of long sequences may be large
  std::vector<int64_t> piece;
  const int64_t end = (first + count) * seq_length;
  for (int64_t token = first * seq_length; token < end; token += kHashedTokens) {
    piece.resize(static_cast<size_t>(std::min(kHashedTokens, end - token)));
    tokens.read(token, piece);
    hashes += hash_bytes(std::as_bytes(std::span(piece)));
  }
  return std::stoull(hash_text(hashes), nullptr, 16);
}

}  // namespace smalltalk
