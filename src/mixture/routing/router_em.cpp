#include "smalltalk/mixture/routing/router_em.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <map>
#include <nlohmann/json.hpp>

#include "mixture/routing/assignment_json.hpp"
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
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "smalltalk/mixture/routing/scoring.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// How many sequences of round 1 are scored again in every round, to see how many change their mind.
constexpr int64_t kProbeSequences = 256;

// Shorter rounds are their own progress: one line a round, none a step.
constexpr int64_t kQuietSteps = 500;

// The routers that a rank scores with, as one model. Those that it trains have a trainer.
struct HostedRouters {
  std::vector<int> ids;
  std::unique_ptr<TransformerStack> stack;         // [ids]
  std::vector<std::unique_ptr<Trainer>> trainers;  // [ids]; null: another rank trains it

  Transformer& model(size_t i) { return (*stack)[static_cast<int64_t>(i)]; }
  // The least that one of them has done; `otherwise` if this rank trains none.
  int64_t steps(int64_t otherwise) const {
    int64_t least = otherwise;
    for (const auto& trainer : trainers) {
      if (trainer) least = std::min(least, trainer->step());
    }
    return least;
  }
  // Up to the given step, on rows[i]: all together, or in turn, if others train some of them or
  // they were stopped at different steps.
  void train(std::span<const RowSource> rows, int64_t last_step) {
    const int64_t least = steps(last_step);
    std::vector<Trainer*> all;
    for (const auto& trainer : trainers) {
      if (trainer && trainer->step() == least) all.push_back(trainer.get());
    }
    if (all.size() == trainers.size()) {
      if (least < last_step) train_stack(*stack, all, rows, last_step);
    } else {
      for (size_t i = 0; i < trainers.size(); ++i) {
        if (trainers[i] && trainers[i]->step() < last_step) trainers[i]->run(rows[i], last_step);
      }
    }
    for (const auto& trainer : trainers) {
      if (trainer) trainer->checkpoint();
    }
  }
};

// Gives the other ranks of a block the weights that its first rank trained.
void share_weights(const HostCollectives& block, Transformer& model) {
  if (block.size == 1) return;
  std::vector<float> weights = model.weights();
  block.broadcast(std::as_writable_bytes(std::span(weights)), 0);
  model.set_weights(weights);
}

// The E-step's scores of some sequences, this rank's slice of them. Collective.
ScoreSlice score_chunk(const Run& run, const HostedRouters& routers, const RouterHosting& hosting,
                       std::span<const uint64_t> ids, ScoringNotes& notes) {
  const Experiment& experiment = run.experiment;
  const auto n = static_cast<int64_t>(ids.size());
  const ScoringShare& share = hosting.share();
  const auto [first, last] = share.rows(n);
  const auto part = ids.subspan(static_cast<size_t>(first), static_cast<size_t>(last - first));
  std::vector<float> mine;
  run_together(hosting.world, [&] {
    mine = score_sequences(*routers.stack, run.tokens, part, experiment.data.seq_length,
                           {&experiment.mixture.prefix_tokens, 1}, &notes);
  });
  const auto bad =
      std::find_if(mine.begin(), mine.end(), [](float score) { return !std::isfinite(score); });
  if (bad != mine.end()) {
    const auto at = static_cast<size_t>(bad - mine.begin());
    throw Error(
        fmt::format("the score of sequence {} under router {} is {}: the router has diverged; "
                    "lower router.lr",
                    part[at % part.size()], share.routers[at / part.size()], *bad));
  }
  return exchange_scores(n, experiment.mixture.experts, hosting.shares, mine, hosting.world);
}

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

TrainConfig router_training(const Experiment& experiment, int64_t steps_per_round) {
  TrainConfig config = experiment.router_train;
  config.steps = steps_per_round * experiment.mixture.rounds;
  return config;
}

// The state of an EM on one rank.
class RouterEm {
 public:
  RouterEm(const Run& run, const RouterHosting& hosting);
  void run();

 private:
  void make_routers();
  // The assignment of a round, known before or found now and kept. Collective.
  Shards e_step(int64_t round);
  Shards find_assignment(int64_t round, nlohmann::json& record);
  // One pass of each router over its part, prefixes only.
  void m_step(int64_t round, const Shards& parts);
  void save_models();

  nlohmann::json read_record(int64_t round) const;
  void add_seconds(int64_t round, double seconds) const;  // and writes the log

  const Run& run_;
  const Experiment& experiment_;  // of the run, as is the layout
  const RunLayout& layout_;
  const RouterHosting& hosting_;
  const int64_t num_experts_, num_rounds_, num_sequences_, steps_per_round_;
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
                       experiment_.router_train.batch_size) {
  ST_CHECK(steps_per_round_ >= 1);
}

void RouterEm::make_routers() {
  const TrainConfig config = router_training(experiment_, steps_per_round_);
  // All routers start from the same weights (the paper does not say): what tells them apart is then
  // only what they were given, and not which of them happens to start better.
  routers_.ids = hosting_.share().routers;
  const std::vector<uint64_t> seeds(routers_.ids.size(),
                                    derive_seed(experiment_.seed, "router init"));
  routers_.stack =
      std::make_unique<TransformerStack>(experiment_.router_model, experiment_.device, seeds);
  for (size_t i = 0; i < routers_.ids.size(); ++i) {
    const int e = routers_.ids[i];
    std::unique_ptr<Trainer>& trainer = routers_.trainers.emplace_back();
    if (std::find(hosting_.trains.begin(), hosting_.trains.end(), e) == hosting_.trains.end()) {
      continue;
    }
    TrainOptions options;
    options.name = fmt::format("router {}", e);
    options.folder = layout_.router(e);
    options.provenance = run_.provenance;
    options.show_progress = steps_per_round_ >= kQuietSteps;
    trainer = std::make_unique<Trainer>(routers_.model(i), config, options);
    trainer->resume();
  }
}

nlohmann::json RouterEm::read_record(int64_t round) const {
  const fs::path path = layout_.round_record(round);
  try {
    return parse_json(read_text(path), path.string());
  } catch (const Error& error) {
    throw Error(fmt::format("{}: remove {} and {} to train the routers anew", error.what(),
                            path.parent_path().string(), layout_.routers_folder().string()));
  }
}

void RouterEm::add_seconds(int64_t round, double seconds) const {
  nlohmann::json record = read_record(round);
  nlohmann::json& its_line = record.at("line");
  its_line["seconds"] = its_line.value("seconds", 0.0) + seconds;
  write_text_atomically(layout_.round_record(round), record.dump(2) + "\n");
  // The log is written from the records: one line a round, whatever was started how often.
  std::string log;
  for (int64_t r = 1; r <= round; ++r) {
    nlohmann::json line = read_record(r).at("line");
    line.emplace("seconds", 0.0);  // unknown of a round that died behind its last step
    log += line.dump() + "\n";
  }
  write_text_atomically(layout_.routing_log(), log);
}

Shards RouterEm::find_assignment(int64_t round, nlohmann::json& record) {
  nlohmann::json& line = record["line"];
  int64_t epoch = 0, epoch_before = 0;
  std::vector<uint64_t> probe = round_chunk(experiment_, num_sequences_, 1, &epoch);
  probe.resize(std::min(probe.size(), static_cast<size_t>(kProbeSequences)));
  if (round > 1) round_chunk(experiment_, num_sequences_, round - 1, &epoch_before);
  const std::vector<uint64_t> chunk = round_chunk(experiment_, num_sequences_, round, &epoch);
  const auto n = static_cast<int64_t>(chunk.size());
  if (epoch > epoch_before) {
    log_info(fmt::format("round {}: no new sequences are left, epoch {} begins", round, epoch + 1));
  }
  line = {{"round", round},
          {"epoch", epoch},
          {"sequences", n},
          {"random", round == 1},
          {"probe", probe.size()}};

  Assignment assignment;
  AssignmentRule rule{AssignmentMethod::random, balanced_capacities(n, num_experts_), {}, {}};
  if (round == 1) {
    assignment = random_assignment(n, num_experts_, derive_seed(experiment_.seed, "random start"));
  } else {
    // The whole chunk and the probe in one exchange.
    std::vector<uint64_t> ids = chunk;
    ids.insert(ids.end(), probe.begin(), probe.end());
    const ScoringShare& share = hosting_.share();
    ScoringNotes notes(layout_.scoring_notes(fmt::format("rank-{}", hosting_.world.rank)),
                       fmt::format("round {} of {}: routers {}, part {} of {}", round,
                                   fmt::join(run_.provenance, " "), fmt::join(share.routers, ","),
                                   share.part, share.parts));
    const ScoreSlice slice = score_chunk(run_, routers_, hosting_, ids, notes);
    const auto [of_chunk, of_probe] = split_scores(slice.scores, n);
    AssignOptions options;
    options.method = experiment_.mixture.assignment;
    options.certify = false;
    options.threads = static_cast<int>(experiment_.device.threads);
    AssignmentOutcome outcome =
        assign_sequences(of_chunk, rule.capacities, options, hosting_.world);
    assignment = gather_values<uint16_t>(outcome.expert, hosting_.world);
    rule = std::move(outcome.rule);
    require_no_empty_shard(outcome.stats.assigned_counts, fmt::format("round {}", round));
    line.update(stats_json(outcome.stats));
    line["selection"] = traffic_json(outcome.traffic);
    const Assignment probe_now =
        gather_values<uint16_t>(argmax_assignment(of_probe), hosting_.world);
    if (round > 2 && hosting_.leader()) {
      const auto before = read_record(round - 1).at("probe_experts").get<Assignment>();
      int64_t changed = 0;
      for (size_t i = 0; i < probe_now.size(); ++i) changed += probe_now[i] != before.at(i);
      line["changed"] = changed;
    }
    record["probe_experts"] = probe_now;
  }
  Provenance made_from = run_.provenance;
  made_from["round"] = std::to_string(round);
  return make_shards(assignment, num_experts_, chunk, made_from, rule);
}

Shards RouterEm::e_step(int64_t round) {
  const fs::path file = layout_.round(round);
  if (first_rank_says(fs::exists(layout_.round_record(round)), hosting_.world)) {
    Shards parts = read_shards(file);
    for (const auto& [key, value] : run_.provenance) {
      if (value_of(parts.provenance, key) == value) continue;
      throw Error(fmt::format("{} was made from other {}: start again in a new run folder",
                              file.string(), key));
    }
    return parts;
  }
  if (routers_.steps(0) > (round - 1) * steps_per_round_) {
    throw Error(fmt::format(
        "{} is missing, but router {} has been trained beyond it: remove {} to "
        "train the routers anew",
        layout_.round_record(round).string(), routers_.ids[0], layout_.routers_folder().string()));
  }
  for (size_t i = 0; i < routers_.ids.size() && round > 1; ++i) {
    share_weights(hosting_.block, routers_.model(i));
  }
  nlohmann::json record;
  Shards parts = find_assignment(round, record);
  if (hosting_.leader()) {
    write_shards(file, parts);
    write_text_atomically(layout_.round_record(round), record.dump(2) + "\n");
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
  for (const int e : routers_.ids) {
    const auto part = parts.of_expert(e);
    const RowSource of_part =
        shuffled_rows(run_.tokens, {part.begin(), part.end()}, experiment_.data.seq_length,
                      experiment_.mixture.prefix_tokens,
                      derive_seed(experiment_.seed, "router order", static_cast<uint64_t>(e),
                                  static_cast<uint64_t>(round)));
    rows.push_back({of_part.row_tokens,
                    [read = of_part.read, base](int64_t first, int64_t count, auto out) {
                      read(first - base, count, out);
                    },
                    [sequence_of = of_part.sequence_of, base](int64_t row) {
                      return sequence_of(row - base);
                    }});
  }
  run_together(hosting_.world, [&] { routers_.train(rows, round * steps_per_round_); });
}

void RouterEm::save_models() {
  for (size_t i = 0; i < routers_.ids.size(); ++i) {
    if (!routers_.trainers[i]) continue;
    const int e = routers_.ids[i];
    std::map<std::string, std::string> metadata(run_.provenance.begin(), run_.provenance.end());
    metadata["router"] = std::to_string(e);
    metadata["smalltalk.seq_length"] = std::to_string(experiment_.data.seq_length);
    routers_.model(i).save(layout_.router(e), metadata);
  }
  hosting_.world.barrier();
  for (const auto& trainer : routers_.trainers) {
    if (trainer) trainer->clear_checkpoints();
  }
}

void RouterEm::run() {
  make_routers();
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
    if (hosting_.leader()) add_seconds(round, now_seconds() - start);
    if (stopped) std::rethrow_exception(stopped);
  }
  if (hosting_.leader()) add_seconds(num_rounds_, 0);
  save_models();
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
