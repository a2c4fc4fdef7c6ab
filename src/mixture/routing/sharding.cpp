#include "smalltalk/mixture/routing/sharding.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>

#include "mixture/routing/assignment_json.hpp"
#include "mixture/routing/scoring_notes.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/score_store.hpp"
#include "smalltalk/lm/train/transformer_stack.hpp"
#include "smalltalk/mixture/routing/router_em.hpp"
#include "smalltalk/mixture/run/provenance.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kHashedTokens = int64_t{1} << 20;  // at a time
constexpr int64_t kPieceRows = int64_t{1} << 22;     // of an assignment, on its way to the writer

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
  const int64_t begin = blocks.count() * world.rank / world.size;
  const int64_t end = blocks.count() * (world.rank + 1) / world.size;
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

// Scores this rank's share of what is missing.
void fill_store(const Run& run, const HostCollectives& world, ScoreStore& store,
                const Blocks& blocks, const std::vector<std::string>& routers,
                std::span<const MissingScores> missing) {
  const Experiment& experiment = run.experiment;
  std::vector<MissingScores> mine;
  int64_t total = 0;
  for (size_t i = static_cast<size_t>(world.rank); i < missing.size();
       i += static_cast<size_t>(world.size)) {
    mine.push_back(missing[i]);
    total += blocks.rows(missing[i].block) * static_cast<int64_t>(missing[i].routers.size());
  }
  if (total == 0) return;
  const std::vector<int64_t> prefixes = kept_prefixes(experiment.mixture.prefix_tokens);
  // By which routers a block lacks: mostly the same for all.
  std::map<std::vector<size_t>, std::unique_ptr<TransformerStack>> stacks;
  Progress progress("scoring", total, "scores");
  int64_t done = 0;
  for (const auto& [block, of_routers] : mine) {
    const auto rows = static_cast<size_t>(blocks.rows(block));
    std::vector<uint64_t> ids(rows);
    std::iota(ids.begin(), ids.end(), static_cast<uint64_t>(blocks.first(block)));
    const size_t width = of_routers.size();
    std::vector<float> scores(prefixes.size() * rows * width);  // [P, rows, routers]
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
    const std::vector<float> columns =  // [routers, rows, P]
        score_prefixes(*stack, run.tokens, ids, experiment.data.seq_length, prefixes, &notes);
    for (size_t k = 0; k < width; ++k) {
      for (size_t row = 0; row < rows; ++row) {
        for (size_t p = 0; p < prefixes.size(); ++p) {
          scores[(p * rows + row) * width + k] = columns[(k * rows + row) * prefixes.size() + p];
        }
      }
    }
    done += static_cast<int64_t>(rows * width);
    progress.update(done);
    store.write(blocks.stored(block), names, prefixes, scores);
    notes.remove();
    if (stop_requested() && done < total) throw Stopped();
  }
}

// The shards that --append builds on. Rank 0 proves that the tokens are an extension of theirs,
// which may mean to read them all.
ShardInfo read_base(const Run& run, const HostCollectives& world) {
  const Experiment& experiment = run.experiment;
  const TokenFile& tokens = *run.tokens;
  const std::string path = run.layout.shards().string();
  if (!fs::exists(path)) {
    throw Error(path + " is missing: there is nothing to append to");
  }
  const ShardInfo base = read_shard_info(path);
  const auto text = [&](const std::string& key) {
    const auto found = base.provenance.find(key);
    return found == base.provenance.end() ? std::string() : found->second;
  };
  if (base.num_experts() != experiment.mixture.experts) {
    throw Error(
        fmt::format("{} is of {} experts, the experiment has {}: assign all anew (without "
                    "--append)",
                    path, base.num_experts(), experiment.mixture.experts));
  }
  const bool extended = text("seq_length") == std::to_string(experiment.data.seq_length) &&
                        (world.rank != 0 || extends(tokens, text("tokens"), text("num_tokens")));
  if (!first_rank_says(extended, world)) {
    throw Error(
        fmt::format("{} is not an extension of the tokens that {} was made from: assign all "
                    "anew (without --append)",
                    tokens.path().string(), path));
  }
  return base;
}

// The control's shards: as many sequences each, dealt out at random. A function of seed and sizes.
void publish_random_shards(const Run& run, int64_t n) {
  const int64_t experts = run.experiment.mixture.experts;
  const uint64_t seed = derive_seed(run.experiment.seed, "random shards");
  Provenance made_from = run.provenance;
  made_from["request"] =
      hash_text(fmt::format("random {} {} {} {}", seed, n, experts, made_from["tokens"]));
  const fs::path file = run.layout.shard_file("random-" + made_from["request"]);
  if (!fs::exists(file)) {
    const AssignmentRule rule{AssignmentMethod::random, balanced_capacities(n, experts), {}, {}};
    write_shards(file,
                 make_shards(random_assignment(n, experts, seed), experts, {}, made_from, rule));
  }
  publish_link(run.layout.random_shards(), file);
}

}  // namespace

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

void write_assignment(const fs::path& path, std::span<const int64_t> counts,
                      const AssignmentRule& rule, std::span<const uint16_t> kept,
                      std::span<const uint16_t> mine, const HostCollectives& world,
                      const Provenance& provenance) {
  const auto size = static_cast<int64_t>(mine.size());
  const std::vector<int64_t> sizes = gather_values<int64_t>({&size, 1}, world);
  // Every rank's pieces in turn, so that rank 0 holds one at a time.
  const auto pass_on = [&](const auto& take) {
    for (int rank = 0; rank < world.size; ++rank) {
      for (int64_t first = 0; first < sizes[static_cast<size_t>(rank)]; first += kPieceRows) {
        std::span<const uint16_t> piece;
        if (rank == world.rank) {
          piece = mine.subspan(static_cast<size_t>(first),
                               static_cast<size_t>(std::min(kPieceRows, size - first)));
        }
        std::vector<int64_t> bytes_to(static_cast<size_t>(world.size), 0);
        bytes_to[0] = static_cast<int64_t>(piece.size_bytes());
        take(values_of<uint16_t>(world.all_to_all(std::as_bytes(piece), bytes_to)));
      }
    }
  };
  if (world.rank != 0) {
    pass_on([](const auto&) {});
    return;
  }
  write_atomically(path, [&](const fs::path& temporary) {
    ShardWriter writer(temporary, path, counts, rule, static_cast<int64_t>(kept.size()), {},
                       provenance);
    writer.add(kept);
    pass_on([&](const std::vector<uint16_t>& experts) { writer.add(experts); });
    writer.finish();
  });
}

void shard_corpus(const Run& run, const HostCollectives& world, const ShardOptions& options) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
  const double start = now_seconds();
  const int64_t seq_length = experiment.data.seq_length;
  const int64_t experts = experiment.mixture.experts;
  const int64_t n = run.tokens->num_sequences(seq_length);
  const int64_t longest = experiment.mixture.prefix_tokens;
  const int64_t prefix = options.prefix_tokens > 0 ? options.prefix_tokens : longest;
  const std::vector<int64_t> prefixes = kept_prefixes(longest);
  if (std::find(prefixes.begin(), prefixes.end(), prefix) == prefixes.end()) {
    throw Error(fmt::format("scores are kept for prefixes of {} tokens, not of {}",
                            fmt::join(prefixes, ", "), prefix));
  }
  const std::vector<std::string> routers = router_hashes(run);
  const auto capacities = shared_capacities(n, experts, options.shares);
  ShardInfo base;
  if (options.append) base = read_base(run, world);
  const int64_t kept = base.num_sequences;
  const auto room = options.append ? room_beside(base.sizes(), capacities) : capacities;

  const std::string request = hash_text(
      fmt::format("{} {} {} {} {} {} {} {} {}", run.tokens->info().content_hash, seq_length, prefix,
                  to_string(options.assign.method),
                  options.assign.method == AssignmentMethod::optimal ? options.assign.epsilon : 0,
                  fmt::join(routers, ","), fmt::join(capacities, ","), kept, base.content_hash));
  const fs::path file = layout.shard_file(request);
  const auto published = [&](const fs::path& link) {
    return fs::exists(link) && read_shard_info(link).provenance.contains("request");
  };
  const bool same = published(layout.shards()) && published(layout.random_shards()) &&
                    fs::exists(layout.sharding_report()) &&
                    (read_shard_info(layout.shards()).provenance.at("request") == request ||
                     (options.append && kept == n));
  if (first_rank_says(same, world)) {
    log_info(kept == n && options.append ? "no new sequences: shards are complete"
                                         : "shards are complete");
    return;
  }

  ScoreStore store(layout.scores(), seq_length, block_size_for(n));
  Blocks blocks{n, store.block_sequences()};
  blocks.hashes = token_hashes(store, *run.tokens, blocks, seq_length, world);
  const auto missing = missing_scores(store, blocks, routers, prefix, world);
  int64_t missing_count = 0;
  for (const MissingScores& work : missing) {
    missing_count += blocks.rows(work.block) * static_cast<int64_t>(work.routers.size());
  }
  if (world.rank == 0) {
    log_info(fmt::format("{} sequences, {} routers, prefix {}: {} of {} scores are known", n,
                         experts, prefix, n * experts - missing_count, n * experts));
  }
  run_together(world, [&] { fill_store(run, world, store, blocks, routers, missing); });

  // This rank's slice, whole blocks; of an appended corpus only the new rows.
  std::vector<StoredScores> held;
  LocalScores<float> scores{experts, {}};
  const int64_t end = blocks.count() * (world.rank + 1) / world.size;
  for (int64_t block = blocks.count() * world.rank / world.size; block < end; ++block) {
    if (blocks.first(block) + blocks.rows(block) <= kept) continue;
    held.push_back(store.read(blocks.stored(block), routers, prefix));
    ScoreBlock<float> rows = held.back().block;
    const int64_t skip = std::max<int64_t>(0, kept - blocks.first(block));
    rows.first_sequence += static_cast<uint64_t>(skip);
    rows.values = rows.values.subspan(static_cast<size_t>(skip * experts));
    scores.blocks.push_back(rows);
  }
  const double assign_start = now_seconds();
  const AssignmentOutcome outcome = assign_sequences(scores, room, options.assign, world);
  std::vector<int64_t> sizes = outcome.stats.assigned_counts;
  for (size_t e = 0; e < sizes.size() && kept > 0; ++e) sizes[e] += base.sizes()[e];
  require_no_empty_shard(sizes, "the shards");
  const double assign_seconds = now_seconds() - assign_start;

  Provenance made_from = run.provenance;
  made_from["request"] = request;
  made_from["routers"] = routers_hash(run);
  made_from["num_tokens"] = std::to_string(run.tokens->info().num_tokens);
  made_from["seq_length"] = std::to_string(seq_length);
  made_from["prefix_tokens"] = std::to_string(prefix);
  if (!first_rank_says(fs::exists(file),
                       world)) {  // else it was current before, and has the same content
    Assignment old;
    if (kept > 0 && world.rank == 0) old = read_shards(layout.shards()).expert;
    write_assignment(file, sizes, outcome.rule, old, outcome.expert, world, made_from);
  }
  if (world.rank == 0) {
    publish_random_shards(run, n);
    nlohmann::json report = stats_json(outcome.stats);
    report["method"] = to_string(options.assign.method);
    report["prefix_tokens"] = prefix;
    report["sequences"] = n;
    report["kept_sequences"] = kept;
    report["scores_known"] = n * experts - missing_count;
    report["scores_computed"] = missing_count;
    report["mean_regret"] = outcome.mean_regret;
    report["mean_regret_bound"] = outcome.bound;
    report["selection"] = traffic_json(outcome.traffic);
    report["assign_seconds"] = assign_seconds;
    report["seconds"] = now_seconds() - start;
    write_text_atomically(layout.sharding_report(), report.dump(2) + "\n");
    publish_link(layout.shards(), file);  // last: from now on it counts
    log_info(
        fmt::format("sharded {} sequences: mean score {:.3f} (best {:.3f}), {} displaced; "
                    "{:.4f} nats per sequence below the best balanced assignment at most",
                    n - kept, outcome.stats.mean_score, outcome.stats.mean_best_score,
                    outcome.stats.displaced, outcome.bound - outcome.mean_regret));
  }
  world.barrier();
}

}  // namespace smalltalk
