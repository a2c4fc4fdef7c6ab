#include "smalltalk/mixture/router_em.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "assignment_json.hpp"
#include "smalltalk/core/assign_sequences.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/core/log.hpp"
#include "smalltalk/core/random.hpp"
#include "smalltalk/core/run_folder.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/lm/safetensors.hpp"
#include "smalltalk/lm/trainer.hpp"
#include "smalltalk/lm/transformer_stack.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// How many sequences of round 1 are scored again in every round, to see how many change their mind.
constexpr int64_t kProbeSequences = 256;

// Shorter rounds are their own progress: one line a round, none a step.
constexpr int64_t kQuietSteps = 500;

fs::path round_state(const RunLayout& layout, int64_t e, int64_t round) {
  return layout.router(e) / fmt::format("round-{:03}.safetensors", round);
}

bool routers_complete(const Experiment& experiment, const RunLayout& layout) {
  for (int64_t e = 0; e < experiment.mixture.experts; ++e) {
    if (!fs::exists(layout.router(e) / "model.safetensors")) return false;
  }
  return true;
}

// The last round whose state every router has saved; 0 if there is none.
int64_t last_common_round(const Experiment& experiment, const RunLayout& layout) {
  for (int64_t round = experiment.mixture.rounds; round > 0; --round) {
    bool all = true;
    for (int64_t e = 0; e < experiment.mixture.experts && all; ++e) {
      all = fs::exists(round_state(layout, e, round));
    }
    if (all) return round;
  }
  return 0;
}

// The routers that a rank scores with, as one model. Those that it trains have a trainer.
struct HostedRouters {
  std::vector<int> ids;
  std::unique_ptr<TransformerStack> stack;         // [ids]
  std::vector<std::unique_ptr<Trainer>> trainers;  // [ids]; null: another rank trains it

  Transformer& model(size_t i) { return (*stack)[static_cast<int64_t>(i)]; }
  // Up to the given step, on rows[i]: all together, or, if others train some of them, in turn.
  void train(std::span<const RowSource> rows, int64_t last_step) {
    std::vector<Trainer*> all;
    for (const auto& trainer : trainers) {
      if (trainer) all.push_back(trainer.get());
    }
    if (all.size() == trainers.size()) return stack->train(all, rows, last_step);
    for (size_t i = 0; i < trainers.size(); ++i) {
      if (trainers[i]) trainers[i]->run(rows[i], last_step);
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
ScoreSlice score_chunk(const HostedRouters& routers, const std::shared_ptr<const TokenFile>& tokens,
                       const Experiment& experiment, const RouterHosting& hosting,
                       std::span<const uint64_t> ids) {
  const auto n = static_cast<int64_t>(ids.size());
  const ScoringShare& share = hosting.share();
  const auto [first, last] = part_of(n, share.part, share.parts);
  const auto part = ids.subspan(static_cast<size_t>(first), static_cast<size_t>(last - first));
  const std::vector<float> mine =
      score_prefixes(*routers.stack, tokens, part, experiment.data.seq_length,
                     {&experiment.mixture.prefix_tokens, 1});
  const auto bad =
      std::find_if(mine.begin(), mine.end(), [](float score) { return !std::isfinite(score); });
  if (bad != mine.end()) {
    const auto at = static_cast<size_t>(bad - mine.begin());
    throw Error(
        fmt::format("the score of sequence {} under router {} is {}: the router has diverged; "
                    "lower router.lr",
                    part[at % part.size()], share.routers[at / part.size()], *bad));
  }
  return turn_scores(n, experiment.mixture.experts, hosting.shares, mine, hosting.world);
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

// Writes the log up to the given round again, so that a repeated round has one line.
void append_routing_line(const fs::path& path, int64_t round, const nlohmann::json& line) {
  std::string text;
  if (fs::exists(path)) {
    std::ifstream in(path);
    for (std::string old; std::getline(in, old);) {
      if (nlohmann::json::parse(old).at("round").get<int64_t>() < round) text += old + "\n";
    }
  }
  write_text_atomically(path, text + line.dump() + "\n");
}

TrainConfig router_training(const Experiment& experiment, int64_t steps_per_round) {
  TrainConfig config = experiment.router_train;
  config.steps = steps_per_round * experiment.mixture.rounds;
  config.save_interval = 0;  // saved once a round, by train_routers
  return config;
}

}  // namespace

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

void train_routers(const Experiment& experiment, const std::shared_ptr<const TokenFile>& tokens,
                   const RunLayout& layout, const RouterHosting& hosting,
                   const Provenance& provenance) {
  const int64_t num_experts = experiment.mixture.experts;
  const int64_t rounds = experiment.mixture.rounds;
  const int64_t num_sequences = tokens->num_sequences(experiment.data.seq_length);
  const int64_t steps_per_round =
      experiment.mixture.sequences_per_round / num_experts / experiment.router_train.batch_size;
  ST_CHECK(steps_per_round >= 1);
  if (routers_complete(experiment, layout)) {
    log_info("routers are complete");
    return;
  }

  // All ranks must agree on where to go on before anyone writes.
  const int64_t done = last_common_round(experiment, layout);
  hosting.world.barrier();

  const TrainConfig config = router_training(experiment, steps_per_round);
  // All routers start from the same weights (the paper does not say): what tells them apart is then
  // only what they were given, and not which of them happens to start better.
  HostedRouters routers;
  routers.ids = hosting.share().routers;
  const std::vector<uint64_t> seeds(routers.ids.size(),
                                    derive_seed(experiment.seed, "router init"));
  routers.stack =
      std::make_unique<TransformerStack>(experiment.router_model, experiment.device, seeds);
  for (size_t i = 0; i < routers.ids.size(); ++i) {
    const int e = routers.ids[i];
    std::unique_ptr<Trainer>& trainer = routers.trainers.emplace_back();
    if (std::find(hosting.trains.begin(), hosting.trains.end(), e) != hosting.trains.end()) {
      TrainOptions options;
      options.name = fmt::format("router {}", e);
      options.folder = layout.router(e);
      options.provenance = provenance;
      options.show_progress = steps_per_round >= kQuietSteps;
      trainer = std::make_unique<Trainer>(routers.model(i), config, options);
      if (done > 0) trainer->load(round_state(layout, e, done));
    }
    if (done > 0) share_weights(hosting.block, routers.model(i));
  }
  if (done > 0) log_info(fmt::format("routers go on after round {} of {}", done, rounds));

  int64_t epoch = 0;
  std::vector<uint64_t> probe = round_chunk(experiment, num_sequences, 1, &epoch);
  probe.resize(std::min(probe.size(), static_cast<size_t>(kProbeSequences)));
  Assignment probe_before;

  for (int64_t round = done + 1; round <= rounds; ++round) {
    const double start = now_seconds();
    const int64_t epoch_before = epoch;
    const std::vector<uint64_t> chunk = round_chunk(experiment, num_sequences, round, &epoch);
    const auto n = static_cast<int64_t>(chunk.size());
    if (epoch > epoch_before) {
      log_info(
          fmt::format("round {}: no new sequences are left, epoch {} begins", round, epoch + 1));
    }
    nlohmann::json line = {{"round", round},
                           {"epoch", epoch},
                           {"sequences", n},
                           {"random", round == 1},
                           {"probe", probe.size()}};

    // E-step: the whole chunk and the probe in one exchange.
    Assignment assignment;
    AssignmentRule rule{AssignmentMethod::random, balanced_capacities(n, num_experts), {}, {}};
    if (round == 1) {
      assignment = random_assignment(n, num_experts, derive_seed(experiment.seed, "random start"));
    } else {
      std::vector<uint64_t> ids = chunk;
      ids.insert(ids.end(), probe.begin(), probe.end());
      const ScoreSlice slice = score_chunk(routers, tokens, experiment, hosting, ids);
      const auto [of_chunk, of_probe] = split_scores(slice.scores, n);
      AssignOptions options;
      options.method = experiment.mixture.assignment;
      options.certify = false;
      options.threads = static_cast<int>(experiment.device.threads);
      AssignmentOutcome outcome =
          assign_sequences(of_chunk, rule.capacities, options, hosting.world);
      assignment = join_slices(outcome.expert, hosting.world);
      rule = std::move(outcome.rule);
      line.update(stats_json(outcome.stats));
      line["selection"] = traffic_json(outcome.traffic);
      const Assignment probe_now = join_slices(argmax_assignment(of_probe), hosting.world);
      if (!probe_before.empty()) {
        int64_t changed = 0;
        for (size_t i = 0; i < probe_now.size(); ++i) changed += probe_now[i] != probe_before[i];
        line["changed"] = changed;
      }
      probe_before = probe_now;
    }
    Provenance made_from = provenance;
    made_from["round"] = std::to_string(round);
    const Shards parts = make_shards(assignment, num_experts, chunk, made_from, rule);
    if (hosting.leader()) write_shards(layout.round(round), parts);

    // M-step: one pass of each router over its part, prefixes only.
    std::vector<RowSource> rows;
    for (const int e : routers.ids) {
      const auto part = parts.of_expert(e);
      RowSource& of_router = rows.emplace_back(
          shuffled_rows(tokens, {part.begin(), part.end()}, experiment.data.seq_length,
                        experiment.mixture.prefix_tokens,
                        derive_seed(experiment.seed, "router order", static_cast<uint64_t>(e),
                                    static_cast<uint64_t>(round))));
      const int64_t base = (round - 1) * steps_per_round * config.batch_size;
      of_router.read = [read = of_router.read, base](int64_t first, int64_t count,
                                                     std::span<int64_t> out) {
        read(first - base, count, out);
      };
    }
    routers.train(rows, round * steps_per_round);
    for (size_t i = 0; i < routers.ids.size(); ++i) {
      if (routers.trainers[i]) {
        routers.trainers[i]->save(round_state(layout, routers.ids[i], round));
      }
      share_weights(hosting.block, routers.model(i));
    }
    line["seconds"] = now_seconds() - start;
    if (hosting.leader()) {
      append_routing_line(layout.routing_log(), round, line);
      log_info(round == 1 ? fmt::format("round 1 of {}: {} sequences dealt out at random, {}",
                                        rounds, n, human_duration(line["seconds"].get<double>()))
                          : fmt::format("round {} of {}: mean score {:.3f} (best {:.3f}), {} of {} "
                                        "displaced, {}",
                                        round, rounds, line["mean_score"].get<double>(),
                                        line["mean_best_score"].get<double>(),
                                        line["displaced"].get<int64_t>(), n,
                                        human_duration(line["seconds"].get<double>())));
    }
    // The state before the last is dropped only when all ranks have the new one.
    hosting.world.barrier();
    for (const int e : hosting.trains) fs::remove(round_state(layout, e, round - 1));
  }
  for (size_t i = 0; i < routers.ids.size(); ++i) {
    if (!routers.trainers[i]) continue;
    const int e = routers.ids[i];
    std::map<std::string, std::string> metadata(provenance.begin(), provenance.end());
    metadata["router"] = std::to_string(e);
    metadata["smalltalk.seq_length"] = std::to_string(experiment.data.seq_length);
    routers.model(i).save(layout.router(e), metadata);
  }
  hosting.world.barrier();
  for (const int e : hosting.trains) fs::remove(round_state(layout, e, rounds));
}

}  // namespace smalltalk
