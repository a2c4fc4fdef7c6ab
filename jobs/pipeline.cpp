#include "pipeline.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/prepare.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/report/report.hpp"
#include "smalltalk/mixture/routing/tfidf.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using nlohmann::json;

void add_stop_options(CLI::App& job, StopOptions& options) {
  job.add_option("--signals", options.signals,
                 "Signals at which the job saves its work and ends with exit code 75 (start it "
                 "again), joined by commas; none: they do what they always do")
      ->check([](const std::string& names) -> std::string {
        try {
          parse_signals(names);
        } catch (const Error& error) {
          return error.what();
        }
        return {};
      })
      ->capture_default_str();
  job.add_option("--walltime-margin", options.walltime_margin,
                 "Do the same so many seconds before the time limit of its Slurm job")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  job.add_option("--hang-timeout", options.hang_timeout,
                 "End the job if a rank has made no progress for so many seconds; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void add_run_options(CLI::App& job, RunOptions& options) {
  job.add_option("experiment", options.experiment, "Experiment file (TOML)")->required();
  job.add_option("--out", options.out, "Run folder; the same folder again continues the run")
      ->required();
  job.add_option("--set", options.overrides,
                 "Override a key of the experiment: section.key=value (repeatable)")
      ->allow_extra_args(false);
  add_stop_options(job, options.stop);
}

void add_part_options(CLI::App& job, WorkPart& part, const std::string& rest) {
  job.add_option("--part", part.part,
                 "Do only the pieces part, part + parts, ... and no " + rest +
                     ": for one element of a Slurm array")
      ->check(CLI::NonNegativeNumber);
  job.add_option("--parts", part.parts, "Into how many parts the work is divided")
      ->check(CLI::PositiveNumber);
}

void require_part(const WorkPart& part) {
  if (part.part < part.parts) return;
  throw Error(fmt::format("--part {} of --parts {}: parts count from 0", part.part, part.parts));
}

void add_assignment_options(CLI::App& job, std::string& method, double& epsilon,
                            std::vector<double>& shares) {
  job.add_option("--method", method,
                 "Who chooses first: greedy (the best score, as in the paper), margin (the largest "
                 "lead of best over second best), or optimal (largest total score)")
      ->check(CLI::IsMember({"greedy", "margin", "optimal"}));
  job.add_option("--epsilon", epsilon,
                 "optimal: nats per sequence by which it may miss the optimum")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  job.add_option("--shares", shares, "Relative sizes of the shards, one per expert: 2,1,1")
      ->delimiter(',');
}

namespace {

std::string agree_on_start(Session& session) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  // The same length on every rank, so that one broadcast does.
  std::string start =
      fmt::format("{:016x}-{:08x}",
                  std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), getpid());
  session.world().broadcast(std::as_writable_bytes(std::span(start)), 0);
  return start;
}

// When to stop because of the batch system's time limit, the same on all ranks.
double deadline_of(const StopOptions& options, Session& session) {
  double left = INFINITY;
  if (session.world().rank() == 0) {
    if (const auto seconds = slurm_seconds_left()) {
      left = *seconds - options.walltime_margin;
      log_info(fmt::format("{} left of the time limit: saves and ends in {}",
                           human_duration(*seconds), human_duration(std::max(0.0, left))));
    }
  }
  session.world().broadcast(std::as_writable_bytes(std::span(&left, 1)), 0);
  return now_seconds() + left;
}

}  // namespace

int run_watched(const StopOptions& options, const std::string& job, const std::string& run_folder,
                const std::function<int(Session&, const std::string& start)>& body) {
  catch_stop_signals(parse_signals(options.signals));
  return run_session(0, nullptr, job, [&](Session& session) {
    set_log_muted(session.world().rank() != 0);
    if (options.hang_timeout > 0) session.watch(options.hang_timeout);
    const std::string start = agree_on_start(session);
    StopSources sources;
    sources.deadline = deadline_of(options, session);
    if (!run_folder.empty()) {
      const RunLayout layout{run_folder};
      sources.file = layout.stop_file();
      sources.bell = layout.queue(start, "stop");
    }
    watch_for_stop(sources);
    return body(session, start);
  });
}

int threads_per_rank(Session& session) {
  const std::vector<int>& nodes = session.node_of_rank();
  const int mine = nodes[static_cast<size_t>(session.world().rank())];
  return std::max<int>(
      1, available_cores() / static_cast<int>(std::count(nodes.begin(), nodes.end(), mine)));
}

Run read_run(const RunOptions& options) {
  Run run;
  run.experiment = load_experiment(options.experiment, options.overrides);
  run.layout.root = options.out;
  return run;
}

RankPlan plan_of(const Run& run, const std::vector<int>& node_of_rank) {
  const MixtureConfig& mixture = run.experiment.mixture;
  return plan_ranks(node_of_rank, static_cast<int>(mixture.experts),
                    static_cast<int>(mixture.group_size), run.experiment.expert_train.batch_size);
}

void require_same_experiment(const Run& run) {
  const fs::path file = run.layout.experiment();
  // A start that failed before it computed anything leaves nothing to protect.
  if (!fs::exists(file) || !fs::exists(run.layout.tokenizer())) return;
  if (experiment_hash(load_experiment(file, {})) != experiment_hash(run.experiment)) {
    throw Error(
        fmt::format("{} holds another experiment (see its experiment.toml): choose "
                    "another run folder, or delete that one",
                    run.layout.root.string()));
  }
}

void claim_run_folder(const Run& run, Communicator& world) {
  require_writable(run.layout.root);
  require_same_experiment(run);
  world.barrier();  // everyone has looked before anyone writes
  if (world.rank() != 0) return;
  remove_stale_temporaries(run.layout.root);
  write_text_atomically(run.layout.experiment(), to_toml(run.experiment));
}

std::unique_ptr<WriteLock> lock_stages(const Run& run, Communicator& world,
                                       double patience_seconds) {
  std::unique_ptr<WriteLock> lock;
  run_together(host_collectives(world), [&] {
    if (world.rank() != 0) return;
    lock = std::make_unique<WriteLock>(run.layout.lock("stages"), run.layout.root.string(),
                                       patience_seconds);
  });
  return lock;
}

namespace {

void prepare_split(const Run& run, const std::string& split, const std::vector<std::string>& inputs,
                   Communicator& world) {
  PrepareOptions options;
  options.inputs = inputs;
  options.tokenizer = run.layout.tokenizer();
  options.out = run.layout.tokens(split);
  options.max_bad_fraction = run.experiment.data.max_bad_fraction;
  options.ranks = host_collectives(world);
  const PrepareReport report = prepare_tokens(options);
  if (report.already_complete) return;
  log_info(fmt::format("{}: {} documents, {} tokens, {} tokens/s", split, report.info.num_documents,
                       human_count(static_cast<double>(report.info.num_tokens)),
                       human_count(static_cast<double>(report.info.num_tokens) / report.seconds)));
}

}  // namespace

void prepare_text(const Run& run, const std::string& name, const std::vector<std::string>& files,
                  Communicator& world) {
  if (!is_plain_name(name) || name == "train" || name == "validation" || name == "test") {
    throw Error(fmt::format(
        "'{}' is no name for other text: it is of letters, digits, '-', '_' and '.', and none of "
        "train, validation, test",
        printable(name)));
  }
  prepare_split(run, name, files, world);
}

void prepare_tokens_of(const Run& run, Communicator& world) {
  const double start = now_seconds();
  const DataConfig& data = run.experiment.data;
  const fs::path tokenizer = run.layout.tokenizer();
  const HostCollectives ranks = host_collectives(world);
  const bool missing = first_rank_says(!fs::exists(tokenizer), ranks);
  run_together(ranks, [&] {
    if (!missing || world.rank() != 0) return;
    if (data.tokenizer.empty()) {
      train_tokenizer(data.train, data.vocab_size, data.tokenizer_sample_bytes, tokenizer);
    } else {
      const Tokenizer given(data.tokenizer);  // refuses what is not a tokenizer
      write_text_atomically(tokenizer, read_text(data.tokenizer));
    }
    stop_if_asked();
  });
  const std::vector<std::pair<std::string, const std::vector<std::string>*>> splits = {
      {"train", &data.train}, {"validation", &data.validation}, {"test", &data.test}};
  for (const auto& [split, inputs] : splits) prepare_split(run, split, *inputs, world);
  if (world.rank() == 0 && missing) {
    record_seconds(run.layout, "prepare", now_seconds() - start);
  }
}

namespace {

void require_split(const Run& run, const std::string& split, const std::string& tokenizer) {
  const TokenFile file(run.layout.tokens(split));
  if (file.info().tokenizer_hash != tokenizer) {
    throw Error(
        fmt::format("{} was made with another tokenizer ({}) than {} ({}): delete it and "
                    "run prepare again",
                    file.path().string(), file.info().tokenizer_hash,
                    run.layout.tokenizer().string(), tokenizer));
  }
  const int64_t length = run.experiment.data.seq_length;
  if (split != "train" && file.num_sequences(length) < 1) {
    throw Error(
        fmt::format("{} holds less than one sequence of {} tokens", file.path().string(), length));
  }
}

}  // namespace

void require_split(const Run& run, const std::string& split) {
  require_split(run, split, Tokenizer(run.layout.tokenizer()).hash());
}

void open_tokens(Run& run) {
  Experiment& experiment = run.experiment;
  const Tokenizer tokenizer(run.layout.tokenizer());
  for (const std::string split : {"train", "validation", "test"}) {
    require_split(run, split, tokenizer.hash());
  }
  run.tokens = std::make_shared<TokenFile>(run.layout.tokens("train"));
  const int64_t num_sequences = run.tokens->num_sequences(experiment.data.seq_length);
  if (num_sequences < experiment.mixture.experts) {
    throw Error(
        fmt::format("mixture.experts = {} but {} holds only {} sequences of {} tokens: add "
                    "text, or lower mixture.experts or data.seq_length",
                    experiment.mixture.experts, run.tokens->path().string(), num_sequences,
                    experiment.data.seq_length));
  }
  experiment.router_model.vocab_size = tokenizer.vocab_size();
  experiment.expert_model.vocab_size = tokenizer.vocab_size();
  run.provenance = {{"tokens", run.tokens->info().content_hash},
                    {"tokenizer", tokenizer.hash()},
                    {"routing", routing_hash(experiment)},
                    {"seed", std::to_string(experiment.seed)}};
}

namespace {

// Binds the plan of the ranks to the collectives that the EM is handed.
RouterHosting hosting_of(const RankPlan& plan, Communicator& world, Communicator& block) {
  const RankRole& role = plan.ranks[static_cast<size_t>(world.rank())];
  RouterHosting hosting;
  hosting.trains = role.trains_routers;
  for (const RankRole& other : plan.ranks) {
    hosting.shares.push_back({other.scores_routers, other.score_part, other.score_parts});
  }
  hosting.world = host_collectives(world);
  hosting.block = host_collectives(block);
  return hosting;
}

// The ranks that score with the same router; a rank with several routers shares them with nobody.
Communicator split_blocks(const RankPlan& plan, Communicator& world) {
  const RankRole& role = plan.ranks[static_cast<size_t>(world.rank())];
  const int color =
      role.score_parts > 1 ? role.scores_routers.at(0) : plan.num_experts + world.rank();
  return world.split(color, world.rank(), "router block");
}

}  // namespace

void route(const Run& run, const RankPlan& plan, Communicator& world) {
  const double start = now_seconds();
  Communicator block = split_blocks(plan, world);
  const bool complete = fs::exists(run.layout.router(0) / "model.safetensors");
  train_routers(run, hosting_of(plan, world, block));
  if (world.rank() == 0 && !complete) {
    record_seconds(run.layout, "route", now_seconds() - start);
  }
}

ShardOptions shard_options(const Run& run) {
  ShardOptions options;
  options.assign.method = run.experiment.mixture.assignment;
  options.assign.threads = static_cast<int>(run.experiment.device.threads);
  return options;
}

void shard(const Run& run, Communicator& world, const ShardOptions& options) {
  if (run.experiment.baselines.tfidf_shards) {  // first: with shards.h5 the stage is complete
    const double start = now_seconds();
    const bool complete = fs::exists(run.layout.tfidf_shards());
    publish_tfidf_shards(run, host_collectives(world), options.assign);
    if (world.rank() == 0 && !complete) {
      record_seconds(run.layout, "tfidf", now_seconds() - start);
    }
  }
  const double start = now_seconds();
  const bool complete = fs::exists(run.layout.sharding_report());
  world.barrier();  // everyone has looked before anyone writes
  shard_corpus(run, host_collectives(world), options);
  if (world.rank() == 0 && !complete) {
    record_seconds(run.layout, "shard", now_seconds() - start);
  }
}

void require_trained(const Run& run, const std::vector<TrainUnit>& units) {
  for (const TrainUnit& unit : units) {
    if (unit_complete(run.layout, unit)) continue;
    throw Error(fmt::format("{} is not trained yet: run train --model {} first",
                            run.layout.model(unit.name).string(), unit.name));
  }
}

bool work_off(const RunLayout& layout, const std::string& start, const std::vector<Work>& pieces,
              WorkPart part) {
  const std::string me = fmt::format("process {}", getpid());
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Work& piece = pieces[i];
    if (static_cast<int64_t>(i) % part.parts != part.part) continue;
    if (piece.complete() || !piece.ready()) continue;
    stop_if_asked();
    if (claim(layout.queue(start, piece.name), me)) piece.compute();
  }
  if (part.parts > 1) return false;
  if (!std::ranges::all_of(pieces, [](const Work& piece) { return piece.complete(); })) {
    return false;
  }
  return claim(layout.queue(start, "results"), me);
}

bool compute_cells(const Run& run, const std::string& start, const std::vector<EvalCell>& cells,
                   WorkPart part) {
  std::vector<Work> pieces;
  for (const EvalCell& cell : cells) {
    pieces.push_back({cell.name(), [&] { return cell_complete(run.layout, cell); },
                      [&] { evaluate_cell(run, cell); },
                      // A model that is still in training is left to the group that trains it,
                      // which comes here next: nobody waits for anybody.
                      [&] {
                        return cell.unit.starts_with("routers") ||
                               fs::exists(run.layout.trained_mark(cell.unit));
                      }});
  }
  return work_off(run.layout, start, pieces, part);
}

bool evaluate_from_queue(const Run& run, const std::string& start, WorkPart part) {
  const std::vector<TrainUnit> units = units_of(run);
  if (!compute_cells(run, start, eval_cells(units), part)) return false;
  write_results(run, units);
  write_report(run.layout.root);
  return true;
}

Comparison write_comparison(const Run& run, const std::vector<TrainUnit>& units,
                            const CompareOptions& options) {
  Comparison comparison = compare(run, units, options);
  write_text_atomically(run.layout.comparison(comparison.split), comparison_json(comparison));
  write_report(run.layout.root);
  return comparison;
}

void record_seconds(const RunLayout& layout, const std::string& stage, double seconds) {
  const fs::path file = layout.seconds();
  json all = fs::exists(file) ? parse_json(read_text(file), file.string()) : json::object();
  all[stage] = seconds;
  write_text_atomically(file, all.dump(2) + "\n");
}

void write_ledger(const RunLayout& layout, const std::string& start, int rank,
                  const std::string& own_group) {
  json entries = json::array();
  int64_t exchanges = 0;
  for (const LedgerEntry& entry : ledger_entries()) {
    entries.push_back({{"phase", entry.phase},
                       {"communicator", entry.communicator},
                       {"call", entry.call},
                       {"calls", entry.calls},
                       {"bytes", entry.bytes}});
    if (entry.phase == "route" && entry.call == "MPI_Alltoallv") exchanges += entry.calls;
  }
  int64_t calls = 0;
  int64_t bytes = 0;
  for (const std::string phase : {"experts", "baselines", "evaluate"}) {
    const LedgerEntry outside = ledger_outside(phase, own_group);
    calls += outside.calls;
    bytes += outside.bytes;
  }
  const json ledger = {{"rank", rank},
                       {"entries", entries},
                       {"collectives", exchanges},
                       {"world_calls_after_shards", calls},
                       {"world_bytes_after_shards", bytes}};
  write_text_atomically(layout.ledger_folder() / fmt::format("{}-rank-{}.json", start, rank),
                        ledger.dump(2) + "\n");
}

void count_in_ledger(const RunLayout& layout, const std::string& start, int rank,
                     const std::string& own_group, const std::function<void()>& body) {
  try {
    body();
  } catch (const Stopped&) {
    write_ledger(layout, start, rank, own_group);
    throw;
  }
  write_ledger(layout, start, rank, own_group);
}

int run_stage(const RunOptions& options, const std::string& job, bool needs_tokens,
              const std::function<void(OpenedRun&)>& body) {
  return run_watched(options.stop, job, options.out, [&](Session& session, const auto& start) {
    Communicator& world = session.world();
    OpenedRun opened{read_run(options), {}, world, start};
    Run& run = opened.run;
    opened.plan = plan_of(run, session.node_of_rank());
    configure_runtime(run.experiment.device, session.local_rank());
    claim_run_folder(run, world);
    if (needs_tokens) open_tokens(run);
    set_ledger_phase(job);
    count_in_ledger(run.layout, start, world.rank(), job == "train" ? world.name() : "",
                    [&] { body(opened); });
    return kExitDone;
  });
}

}  // namespace smalltalk
