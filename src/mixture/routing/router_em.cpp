#include "smalltalk/mixture/routing/router_em.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>

#include "mixture/routing/assignment_json.hpp"
#include "mixture/routing/hosted_routers.hpp"
#include "mixture/routing/round_records.hpp"
#include "mixture/routing/scoring_notes.hpp"
#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/mixture/routing/scoring.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// How many sequences of round 1 are scored again in every round, to see how many change their mind.
constexpr int64_t kProbeSequences = 256;

// The rows of a slice before position n of the chunk, and the others.
std::pair<LocalScores<uint16_t>, LocalScores<uint16_t>> split_scores(
    const LocalScores<uint16_t>& slice, int64_t n) {
  const ScoreBlock<uint16_t>& rows = slice.blocks[0];
  const auto first = static_cast<int64_t>(rows.first_sequence);
  const auto before =
      static_cast<size_t>(std::clamp<int64_t>(n - first, 0, slice.num_rows()) * slice.num_experts);
  LocalScores<uint16_t> head = slice;
  LocalScores<uint16_t> tail = slice;
  head.blocks[0].values = rows.values.first(before);
  tail.blocks[0].values = rows.values.subspan(before);
  tail.blocks[0].first_sequence = std::max(rows.first_sequence, static_cast<uint64_t>(n));
  return {head, tail};
}

std::vector<uint64_t> probe_of(const Experiment& experiment, int64_t num_sequences) {
  int64_t epoch = 0;
  std::vector<uint64_t> probe = round_chunk(experiment, num_sequences, 1, &epoch);
  probe.resize(std::min(probe.size(), static_cast<size_t>(kProbeSequences)));
  return probe;
}

// Where the sequences of a chunk go, and by which rule.
struct ChunkAssignment {
  Assignment expert;
  AssignmentRule rule;
};

// The state of an EM on one rank.
class RouterEm {
 public:
  RouterEm(const Run& run, const RouterHosting& hosting);
  void run();

 private:
  // The parts of a round, known before or found now and kept. Collective.
  Shards e_step(int64_t round);
  // One pass of each router over its part, prefixes only.
  void m_step(int64_t round, const Shards& parts);

  // Parts that were not known before. They fill the round's record. Collective.
  Shards find_parts(int64_t round, nlohmann::json& record);
  ChunkAssignment deal_out(int64_t n) const;
  ChunkAssignment assign(int64_t round, std::span<const uint64_t> chunk, nlohmann::json& record);
  // This rank's slice of the routers' scores. Collective.
  ScoreSlice score(int64_t round, std::span<const uint64_t> ids) const;

  const Run& run_;
  const Experiment& experiment_;  // of the run, as is the layout
  const RunLayout& layout_;
  const RouterHosting& hosting_;
  const int64_t num_experts_, num_rounds_, num_sequences_, steps_per_round_;
  const std::vector<uint64_t> probe_;
  const RoundRecords records_;
  HostedRouters routers_;
};

RouterEm::RouterEm(const Run& run, const RouterHosting& hosting)
    : run_(run),
      experiment_(run.experiment),
      layout_(run.layout),
      hosting_(hosting),
      num_experts_(experiment_.mixture.experts),
      num_rounds_(experiment_.mixture.rounds),
      num_sequences_(run.tokens->num_sequences(experiment_.data.seq_length)),
      steps_per_round_(experiment_.mixture.sequences_per_round / num_experts_ /
                       experiment_.router_train.batch_size),
      probe_(probe_of(experiment_, num_sequences_)),
      records_(layout_),
      routers_(run, hosting, steps_per_round_) {
  ST_CHECK(steps_per_round_ >= 1);
}

ScoreSlice RouterEm::score(int64_t round, std::span<const uint64_t> ids) const {
  const ScoringShare& share = hosting_.share();
  ScoringNotes notes(layout_.scoring_notes(fmt::format("rank-{}", hosting_.world.rank)),
                     fmt::format("round {} of {}: routers {}, part {} of {}", round,
                                 fmt::join(run_.provenance, " "), fmt::join(share.routers, ","),
                                 share.part, share.parts));
  const auto n = std::ssize(ids);
  const auto [first, last] = share.rows(n);
  const auto part = ids.subspan(static_cast<size_t>(first), static_cast<size_t>(last - first));
  std::vector<float> mine;
  run_together(hosting_.world, [&] {
    mine = score_sequences(routers_.stack(), run_.tokens, part, experiment_.data.seq_length,
                           {&experiment_.mixture.prefix_tokens, 1}, &notes);
  });
  const auto bad = std::ranges::find_if_not(mine, [](float one) { return std::isfinite(one); });
  if (bad != mine.end()) {
    const auto at = static_cast<size_t>(bad - mine.begin());
    throw Error(
        fmt::format("the score of sequence {} under router {} is {}: the router has diverged; "
                    "lower router.lr",
                    part[at % part.size()], share.routers[at / part.size()], *bad));
  }
  return exchange_scores(n, num_experts_, hosting_.shares, mine, hosting_.world);
}

ChunkAssignment RouterEm::deal_out(int64_t n) const {
  return {random_assignment(n, num_experts_, derive_seed(experiment_.seed, "random start")),
          {AssignmentMethod::random, balanced_capacities(n, num_experts_), {}, {}}};
}

ChunkAssignment RouterEm::assign(int64_t round, std::span<const uint64_t> chunk,
                                 nlohmann::json& record) {
  // The whole chunk and the probe in one exchange.
  std::vector<uint64_t> ids(chunk.begin(), chunk.end());
  ids.insert(ids.end(), probe_.begin(), probe_.end());
  const ScoreSlice slice = score(round, ids);
  const auto [of_chunk, of_probe] = split_scores(slice.scores, std::ssize(chunk));
  AssignOptions options;
  options.method = experiment_.mixture.assignment;
  options.certify = false;
  options.threads = static_cast<int>(experiment_.device.threads);
  AssignmentOutcome outcome = assign_sequences(
      of_chunk, balanced_capacities(std::ssize(chunk), num_experts_), options, hosting_.world);
  require_no_empty_shard(outcome.stats.assigned_counts, fmt::format("round {}", round));
  nlohmann::json& line = record["line"];
  line.update(stats_json(outcome.stats));
  line["selection"] = traffic_json(outcome.traffic);
  // Slices follow one another in rank order.
  Assignment expert = gather_values<uint16_t>(outcome.expert, hosting_.world);
  const Assignment probe_now = gather_values<uint16_t>(argmax_assignment(of_probe), hosting_.world);
  if (round > 2 && hosting_.leader()) {
    const auto before = records_.read(round - 1).at("probe_experts").get<Assignment>();
    int64_t changed = 0;
    for (size_t i = 0; i < probe_now.size(); ++i) changed += probe_now[i] != before.at(i);
    line["changed"] = changed;
  }
  record["probe_experts"] = probe_now;
  return {std::move(expert), std::move(outcome.rule)};
}

Shards RouterEm::find_parts(int64_t round, nlohmann::json& record) {
  int64_t epoch = 0, epoch_before = 0;
  if (round > 1) round_chunk(experiment_, num_sequences_, round - 1, &epoch_before);
  const std::vector<uint64_t> chunk = round_chunk(experiment_, num_sequences_, round, &epoch);
  if (epoch > epoch_before) {
    log_info(fmt::format("round {}: no new sequences are left, epoch {} begins", round, epoch + 1));
  }
  record["line"] = {{"round", round},
                    {"epoch", epoch},
                    {"sequences", chunk.size()},
                    {"random", round == 1},
                    {"probe", probe_.size()}};
  const ChunkAssignment found =
      round == 1 ? deal_out(std::ssize(chunk)) : assign(round, chunk, record);
  Provenance made_from = run_.provenance;
  made_from["round"] = std::to_string(round);
  return make_shards(found.expert, num_experts_, chunk, made_from, found.rule);
}

Shards RouterEm::e_step(int64_t round) {
  const fs::path file = layout_.round(round);
  if (first_rank_says(records_.exists(round), hosting_.world)) {
    Shards parts = read_shards(file);
    for (const auto& [key, value] : run_.provenance) {
      if (value_of(parts.provenance, key) == value) continue;
      throw Error(fmt::format("{} was made from other {}: start again in a new run folder",
                              file.string(), key));
    }
    return parts;
  }
  if (routers_.steps(0) > (round - 1) * steps_per_round_) {
    throw Error(
        fmt::format("{} is missing, but router {} has been trained beyond it: remove {} to "
                    "train the routers anew",
                    layout_.round_record(round).string(), routers_.ids()[0],
                    layout_.routers_folder().string()));
  }
  if (round > 1) routers_.share_weights();
  nlohmann::json record;
  Shards parts = find_parts(round, record);
  if (hosting_.leader()) {
    write_shards(file, parts);
    records_.write(round, record);
    const nlohmann::json& line = record.at("line");
    log_info(round == 1
                 ? fmt::format("round 1 of {}: {} sequences dealt out at random", num_rounds_,
                               line["sequences"].get<int64_t>())
                 : fmt::format("round {} of {}: mean score {:.3f} (best {:.3f}), {} of {} "
                               "displaced",
                               round, num_rounds_, line["mean_score"].get<double>(),
                               line["mean_best_score"].get<double>(),
                               line["displaced"].get<int64_t>(), line["sequences"].get<int64_t>()));
  }
  // No router trains on a part that might be found differently another time.
  hosting_.world.barrier();
  fs::remove(layout_.scoring_notes(fmt::format("rank-{}", hosting_.world.rank)));
  return parts;
}

void RouterEm::m_step(int64_t round, const Shards& parts) {
  const int64_t base = (round - 1) * steps_per_round_ * experiment_.router_train.batch_size;
  std::vector<RowSource> rows;
  for (const int e : routers_.ids()) {
    const auto part = parts.of_expert(e);
    rows.push_back(numbered_from(
        base, shuffled_rows(run_.tokens, {part.begin(), part.end()}, experiment_.data.seq_length,
                            experiment_.mixture.prefix_tokens,
                            derive_seed(experiment_.seed, "router order", static_cast<uint64_t>(e),
                                        static_cast<uint64_t>(round)))));
  }
  run_together(hosting_.world, [&] { routers_.train(rows, round * steps_per_round_); });
}

void RouterEm::run() {
  // Rounds that all routers are through with.
  double behind = -static_cast<double>(routers_.steps(num_rounds_ * steps_per_round_));
  hosting_.world.all_reduce_max({&behind, 1});
  const int64_t done = static_cast<int64_t>(-behind) / steps_per_round_;
  if (done > 0) log_info(fmt::format("routers go on after round {} of {}", done, num_rounds_));
  for (int64_t round = done + 1; round <= num_rounds_; ++round) {
    const double start = now_seconds();
    const Shards parts = e_step(round);
    std::exception_ptr stopped;
    try {
      m_step(round, parts);
    } catch (const Stopped&) {
      stopped = std::current_exception();
    }
    if (hosting_.leader()) records_.add_seconds(round, now_seconds() - start);
    if (stopped) std::rethrow_exception(stopped);
  }
  if (hosting_.leader()) records_.add_seconds(num_rounds_, 0);
  routers_.save();
}

}  // namespace

RouterHosting RouterHosting::alone(int64_t num_experts) {
  RouterHosting hosting;
  for (int e = 0; e < static_cast<int>(num_experts); ++e) hosting.trains.push_back(e);
  hosting.shares = {{hosting.trains, 0, 1}};
  return hosting;
}

std::vector<uint64_t> round_chunk(const Experiment& experiment, int64_t num_sequences,
                                  int64_t round, int64_t* epoch) {
  const int64_t n = experiment.mixture.sequences_per_round;
  if (n > num_sequences) {
    throw Error(fmt::format(
        "mixture.sequences_per_round = {} but the training tokens hold only {} sequences of {} "
        "tokens: lower it or add text",
        n, num_sequences, experiment.data.seq_length));
  }
  const int64_t rounds_per_epoch = num_sequences / n;
  *epoch = (round - 1) / rounds_per_epoch;
  const int64_t first = (round - 1) % rounds_per_epoch * n;
  const Permutation order(
      static_cast<uint64_t>(num_sequences),
      derive_seed(experiment.seed, "router chunks", static_cast<uint64_t>(*epoch)));
  std::vector<uint64_t> ids(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    ids[static_cast<size_t>(i)] = order(static_cast<uint64_t>(first + i));
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

void train_routers(const Run& run, const RouterHosting& hosting) {
  if (first_rank_says(routers_stage(run).complete(), hosting.world)) {
    log_info("routers are complete");
    return;
  }
  RouterEm(run, hosting).run();
}

}  // namespace smalltalk
