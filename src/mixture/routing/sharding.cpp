#include "smalltalk/mixture/routing/sharding.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "mixture/routing/assignment_json.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/mixture/routing/corpus_scores.hpp"
#include "smalltalk/mixture/routing/shard_assignment.hpp"
#include "smalltalk/mixture/run/provenance.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// The shards that --append builds on. Rank 0 proves that the tokens are an extension of theirs,
// which may mean to read them all.
KeptSequences keep_current_shards(const Run& run, const HostCollectives& world) {
  const Experiment& experiment = run.experiment;
  const std::string path = run.layout.shards().string();
  if (!fs::exists(path)) {
    throw Error(path + " is missing: there is nothing to append to");
  }
  ShardInfo base = read_shard_info(path);
  if (base.num_experts() != experiment.mixture.experts) {
    throw Error(
        fmt::format("{} is of {} experts, the experiment has {}: assign all anew (without "
                    "--append)",
                    path, base.num_experts(), experiment.mixture.experts));
  }
  Provenance& made_from = base.provenance;
  const bool extended =
      made_from["seq_length"] == std::to_string(experiment.data.seq_length) &&
      (world.rank != 0 || extends(*run.tokens, made_from["tokens"], made_from["num_tokens"]));
  if (!first_rank_says(extended, world)) {
    throw Error(
        fmt::format("{} is not an extension of the tokens that {} was made from: assign all "
                    "anew (without --append)",
                    run.tokens->path().string(), path));
  }
  return keep_sequences(path);
}

// What is asked of a sharding, and by that what its shard file holds.
struct ShardRequest {
  int64_t num_sequences = 0;
  KeptSequences kept;
  std::vector<int64_t> room;  // [E] sequences that each expert takes beside those that it keeps
  ScoreQuery scores;
  std::string scored_by;  // routers or ngrams
  std::string hash;       // names the shard file

  bool nothing_new() const { return !kept.shards.empty() && kept.count == num_sequences; }
};

// Collective.
ShardRequest request_shards(const Run& run, const HostCollectives& world,
                            const ShardOptions& options) {
  const Experiment& experiment = run.experiment;
  const int64_t seq_length = experiment.data.seq_length;
  const int64_t experts = experiment.mixture.experts;
  const int64_t longest = experiment.mixture.prefix_tokens;
  const int64_t prefix = options.prefix_tokens > 0 ? options.prefix_tokens : longest;
  const std::vector<int64_t> prefixes = kept_prefixes(longest);
  if (std::find(prefixes.begin(), prefixes.end(), prefix) == prefixes.end()) {
    throw Error(fmt::format("scores are kept for prefixes of {} tokens, not of {}",
                            fmt::join(prefixes, ", "), prefix));
  }
  ShardRequest request;
  request.num_sequences = run.tokens->num_sequences(seq_length);
  request.scored_by = to_string(experiment.mixture.sharding);
  request.scores.routers = router_hashes(run);
  request.scores.prefix = prefix;
  const auto capacities = shared_capacities(request.num_sequences, experts, options.shares);
  request.kept = options.append ? keep_current_shards(run, world) : keep_none(experts);
  request.scores.first_sequence = request.kept.count;
  request.room = room_beside(request.kept.by_expert, capacities);
  request.hash = hash_text(
      fmt::format("{} {} {} {} {} {} {} {} {}", run.tokens->info().content_hash, seq_length, prefix,
                  to_string(options.assign.method),
                  options.assign.method == AssignmentMethod::optimal ? options.assign.epsilon : 0,
                  fmt::join(request.scores.routers, ","), fmt::join(capacities, ","),
                  request.kept.count, request.kept.content_hash) +
      (experiment.mixture.sharding == Sharding::ngrams ? " ngrams" : ""));
  return request;
}

// Whether the run's shards are those that are asked for, with all that belongs to them.
bool shards_are_complete(const RunLayout& layout, const ShardRequest& request) {
  const std::string current = request_of(layout.shards());
  return !current.empty() && !request_of(layout.random_shards()).empty() &&
         fs::exists(layout.sharding_report()) && (request.nothing_new() || current == request.hash);
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

nlohmann::json report_of(const ShardRequest& request, const CorpusScores& scores,
                         const AssignmentOutcome& outcome) {
  nlohmann::json report = stats_json(outcome.stats);
  report["method"] = to_string(outcome.rule.method);
  report["prefix_tokens"] = request.scores.prefix;
  report["sequences"] = request.num_sequences;
  report["kept_sequences"] = request.kept.count;
  report["scored_by"] = request.scored_by;
  report["scores_known"] = scores.known;
  report["scores_computed"] = scores.computed;
  report["mean_regret"] = outcome.mean_regret;
  report["mean_regret_bound"] = outcome.bound;
  report["selection"] = traffic_json(outcome.traffic);
  return report;
}

}  // namespace

void shard_corpus(const Run& run, const HostCollectives& world, const ShardOptions& options) {
  const RunLayout& layout = run.layout;
  const double start = now_seconds();
  const ShardRequest request = request_shards(run, world, options);
  if (first_rank_says(shards_are_complete(layout, request), world)) {
    log_info(request.nothing_new() ? "no new sequences: shards are complete"
                                   : "shards are complete");
    return;
  }

  const CorpusScores scores = corpus_scores(run, request.scores, world);
  const double assign_start = now_seconds();
  const AssignmentOutcome outcome =
      assign_sequences(scores.mine, request.room, options.assign, world);
  require_no_empty_shard(shard_sizes(request.kept, outcome), "the shards");
  const double assign_seconds = now_seconds() - assign_start;

  const fs::path file = layout.shard_file(request.hash);
  // A file that is there was current before, and has the same content.
  if (!first_rank_says(fs::exists(file), world)) {
    Provenance made_from = run.provenance;
    made_from["request"] = request.hash;
    made_from["routers"] = routers_hash(run);
    made_from["num_tokens"] = std::to_string(run.tokens->info().num_tokens);
    made_from["seq_length"] = std::to_string(run.experiment.data.seq_length);
    made_from["prefix_tokens"] = std::to_string(request.scores.prefix);
    made_from["scored_by"] = request.scored_by;
    write_assignment(file, request.kept, outcome, world, made_from);
  }
  if (world.rank == 0) {
    publish_random_shards(run, request.num_sequences);
    nlohmann::json report = report_of(request, scores, outcome);
    report["assign_seconds"] = assign_seconds;
    report["seconds"] = now_seconds() - start;
    write_text_atomically(layout.sharding_report(), report.dump(2) + "\n");
    publish_link(layout.shards(), file);  // last: from now on it counts
    log_info(
        fmt::format("sharded {} sequences: mean score {:.3f} (best {:.3f}), {} displaced; "
                    "{:.4f} nats per sequence below the best balanced assignment at most",
                    request.num_sequences - request.kept.count, outcome.stats.mean_score,
                    outcome.stats.mean_best_score, outcome.stats.displaced,
                    outcome.bound - outcome.mean_regret));
  }
  world.barrier();
}

}  // namespace smalltalk
