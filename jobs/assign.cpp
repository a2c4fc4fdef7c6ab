// assign: shards from a score matrix, without any model.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "jobs.hpp"
#include "run_job.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/assignment/compare_methods.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/mixture/routing/shard_assignment.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

struct AssignJob {
  std::string scores;
  std::string out;
  std::string append;
  std::string method = "greedy";
  double epsilon = AssignOptions{}.epsilon;
  std::vector<double> shares;
  int threads = 0;
  bool certificate = true;
  bool compare = false;
  StopOptions stop;
  bool json = false;
};

// All that decides what is written. The score file counts by name, size and time: its scores may be
// too many to read twice.
std::string hash_of(const AssignJob& job, const std::string& kept_hash) {
  const auto time = fs::last_write_time(job.scores).time_since_epoch().count();
  return hash_text(fmt::format("{} {} {} {} {} {} {}", fs::canonical(job.scores).string(),
                               fs::file_size(job.scores), time, job.method,
                               job.method == "optimal" ? job.epsilon : 0,
                               fmt::join(job.shares, ","), kept_hash));
}

// What is to be assigned, and by that what the shard file holds.
struct AssignRequest {
  KeptSequences kept;
  std::vector<int64_t> room;  // [E] sequences that each expert takes beside those that it keeps
  std::string hash;
};

AssignRequest make_request(const AssignJob& job, const ScoreFile& file) {
  const int64_t n = file.num_sequences();
  const int64_t experts = file.num_experts();
  const auto capacities = shared_capacities(n, experts, job.shares);
  AssignRequest request;
  request.kept = job.append.empty() ? keep_none(experts) : keep_sequences(job.append);
  const KeptSequences& kept = request.kept;
  if (std::ssize(kept.by_expert) != experts || kept.count > n) {
    throw Error(
        fmt::format("{} holds {} sequences of {} experts: it is not the beginning of {}, "
                    "which holds {} of {}",
                    job.append, kept.count, kept.by_expert.size(), job.scores, n, experts));
  }
  request.room = room_beside(kept.by_expert, capacities);
  request.hash = hash_of(job, kept.content_hash);
  return request;
}

// Whether the shard file is there already. Error: another one is.
bool is_complete(const AssignJob& job, const AssignRequest& request) {
  if (job.out.empty() || !fs::exists(job.out)) return false;
  if (request_of(job.out) != request.hash) {
    throw Error(
        fmt::format("{} is there already, of other scores or another rule; shard files "
                    "are never overwritten: choose another --out",
                    job.out));
  }
  return true;
}

AssignOptions assign_options(const AssignJob& job, Session& session) {
  AssignOptions options;
  options.method = assignment_method(job.method);
  options.epsilon = job.epsilon;
  options.certify = job.certificate;
  if (!job.compare) require_acting(options.method, options.epsilon, job.shares);
  options.threads = job.threads > 0 ? job.threads : threads_per_rank(session);
  return options;
}

void print_comparison(const MethodComparison& comparison, int64_t num_sequences) {
  fmt::print("{:<24} {:>14} {:>14} {:>16} {:>12} {:>14} {:>10}\n", "", "mean score", "mean regret",
             "below the bound", "displaced", "not as greedy", "largest");
  for (const MethodResult& method : comparison.methods) {
    const AssignmentStats& stats = method.stats;
    fmt::print("{:<24} {:>14.4f} {:>14.4f} {:>16.4f} {:>12} {:>14} {:>10}\n", method.name,
               stats.mean_score, method.mean_regret(), comparison.bound - method.mean_regret(),
               stats.displaced, method.differs,
               *std::max_element(stats.assigned_counts.begin(), stats.assigned_counts.end()));
  }
  fmt::print(
      "nats per sequence, {} sequences; bound: no balanced assignment has a larger mean "
      "regret than {:.6f}\n",
      num_sequences, comparison.bound);
}

Json to_json(const MethodComparison& comparison, int64_t num_sequences, int64_t num_experts) {
  Json methods = Json::object();
  for (const MethodResult& method : comparison.methods) {
    methods[method.name] = {{"mean_score", method.stats.mean_score},
                            {"mean_regret", method.mean_regret()},
                            {"displaced", method.stats.displaced},
                            {"differs_from_greedy", method.differs},
                            {"assigned_counts", method.stats.assigned_counts}};
  }
  return {{"sequences", num_sequences},
          {"experts", num_experts},
          {"mean_regret_bound", comparison.bound},
          {"methods", methods}};
}

// Integers that a selection moves for N sequences, if the scores' keys have so many bits.
Json predictions(int64_t num_experts, int rank_bits) {
  Json rows = Json::array();
  for (int64_t n = 1'000'000; n <= 10'000'000'000; n *= 10) {
    const int bits = rank_bits + static_cast<int>(std::bit_width(static_cast<uint64_t>(n - 1)));
    const double numbers = predicted_selection_numbers(num_experts, bits);
    rows.push_back(
        {{"sequences", n}, {"key_bits", bits}, {"numbers", numbers}, {"bytes", 8 * numbers}});
  }
  return rows;
}

// What an assignment cost.
struct AssignCosts {
  double read_seconds = 0, assign_seconds = 0, write_seconds = 0;
  int64_t bytes_sent = 0;   // while it was assigned, by the rank that sent most
  int64_t peak_memory = 0;  // bytes, of the rank that took most
};

Json to_json(const AssignmentOutcome& outcome, const AssignCosts& costs,
             const AssignOptions& options, int64_t num_sequences, int64_t kept_sequences,
             int ranks) {
  const AssignmentStats& stats = outcome.stats;
  const auto experts = std::ssize(stats.assigned_counts);
  Json figures = {{"method", to_string(options.method)},
                  {"sequences", num_sequences},
                  {"kept_sequences", kept_sequences},
                  {"experts", experts},
                  {"ranks", ranks},
                  {"threads_per_rank", options.threads},
                  {"displaced", stats.displaced},
                  {"mean_score", stats.mean_score},
                  {"mean_best_score", stats.mean_best_score},
                  {"mean_regret", outcome.mean_regret}};
  const bool optimal = options.method == AssignmentMethod::optimal;
  if (options.certify || optimal) figures["mean_regret_bound"] = outcome.bound;
  figures["assigned_counts"] = stats.assigned_counts;
  figures["seconds"] = {{"read", costs.read_seconds},
                        {"assign", costs.assign_seconds},
                        {"write", costs.write_seconds}};
  figures["bytes_sent_per_rank"] = costs.bytes_sent;
  figures["peak_memory_bytes_per_rank"] = costs.peak_memory;
  if (optimal) return figures;
  const SelectionTraffic& traffic = outcome.traffic;
  const int id_bits = static_cast<int>(
      std::bit_width(static_cast<uint64_t>(std::max<int64_t>(1, num_sequences) - 1)));
  figures["selection"] = {
      {"key_bits", traffic.key_bits},
      {"reductions", traffic.reductions},
      {"numbers", traffic.numbers},
      {"predicted_numbers", predicted_selection_numbers(experts, traffic.key_bits)},
      {"predictions", predictions(experts, traffic.key_bits - id_bits)}};
  return figures;
}

void log_figures(const std::string& out, const Json& figures) {
  const auto number = [](const Json& value) { return value.get<double>(); };
  log_info(fmt::format(
      "{}: {} sequences, {} displaced, mean score {:.4f} (best {:.4f}), {}", out,
      figures["sequences"].get<int64_t>() - figures["kept_sequences"].get<int64_t>(),
      figures["displaced"].get<int64_t>(), number(figures["mean_score"]),
      number(figures["mean_best_score"]), human_duration(number(figures["seconds"]["assign"]))));
  if (figures.contains("mean_regret_bound")) {
    log_info(fmt::format("at most {:.6f} nats per sequence below the best balanced assignment",
                         number(figures["mean_regret_bound"]) - number(figures["mean_regret"])));
  }
  log_info(
      fmt::format("{} sent per rank in all", human_bytes(number(figures["bytes_sent_per_rank"]))));
  if (!figures.contains("selection")) return;
  const Json& selection = figures["selection"];
  log_info(fmt::format(
      "{} all-reduces of {} integers in all per rank (b E^2 / 2 = {:.0f} for {} bits): {}",
      selection["reductions"].get<int64_t>(), selection["numbers"].get<int64_t>(),
      number(selection["predicted_numbers"]), selection["key_bits"].get<int>(),
      human_bytes(8 * number(selection["numbers"]))));
  for (const Json& row : selection["predictions"]) {
    log_info(fmt::format("  predicted for {:>8} sequences: {} per rank",
                         human_count(number(row["sequences"])), human_bytes(number(row["bytes"]))));
  }
}

int64_t bytes_sent_in(Phase phase) {
  int64_t sent = 0;
  for (const LedgerEntry& entry : ledger_entries()) {
    if (entry.phase == phase) sent += entry.bytes;
  }
  return sent;
}

int assign(const AssignJob& job, Session& session) {
  const double start = now_seconds();
  Communicator& world = session.world();
  const HostCollectives ranks = host_collectives(world);
  set_ledger_phase(Phase::assign);

  const ScoreFile file(job.scores);
  const int64_t n = file.num_sequences();
  const AssignRequest request = make_request(job, file);
  const bool complete = is_complete(job, request);
  world.barrier();  // everyone has looked before anyone writes
  if (complete) {
    log_info(fmt::format("{} is complete", job.out));
    return kExitDone;
  }
  if (world.rank() == 0 && !job.out.empty()) {
    require_writable(fs::absolute(job.out).parent_path());  // not found out after hours
  }

  const int64_t kept = request.kept.count;
  const auto [first, last] = part_of_range(n - kept, world.rank(), world.size());
  const LocalScores<float> scores = file.rows(kept + first, last - first);
  const AssignOptions options = assign_options(job, session);
  AssignCosts costs;
  costs.read_seconds = now_seconds() - start;
  if (job.compare) {
    const MethodComparison comparison =
        compare_methods(scores, static_cast<uint64_t>(kept), request.room, options, ranks);
    if (world.rank() != 0) return kExitDone;
    if (job.json) {
      std::cout << to_json(comparison, n - kept, file.num_experts()).dump() << std::endl;
    } else {
      print_comparison(comparison, n - kept);
    }
    return kExitDone;
  }

  const double assign_start = now_seconds();
  const AssignmentOutcome outcome = assign_sequences(scores, request.room, options, ranks);
  costs.assign_seconds = now_seconds() - assign_start;
  costs.bytes_sent = bytes_sent_in(Phase::assign);
  const double write_start = now_seconds();
  write_assignment(
      job.out, request.kept, outcome, ranks,
      {{"request", request.hash}, {"scores", job.scores}, {"num_sequences", std::to_string(n)}});
  costs.write_seconds = now_seconds() - write_start;
  costs.peak_memory = world.all_reduce_max(peak_memory_bytes());
  costs.bytes_sent = world.all_reduce_max(costs.bytes_sent);
  if (world.rank() != 0) return kExitDone;
  const Json figures = to_json(outcome, costs, options, n, kept, world.size());
  if (job.json) std::cout << figures.dump() << std::endl;
  log_figures(job.out, figures);
  return kExitDone;
}

}  // namespace

void add_assign_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("assign", "Make shards from a score matrix, without any model");
  auto job = std::make_shared<AssignJob>();
  sub->add_option("--scores", job->scores,
                  "HDF5 file with a dataset /scores float32 [N, E]: the log-likelihood of each "
                  "sequence under each router; higher is better")
      ->required();
  sub->add_option("--out", job->out, "Shard file to write; never overwritten");
  add_assignment_options(*sub, job->method, job->epsilon, job->shares);
  sub->add_option("--append", job->append,
                  "Shard file of the first sequences: keep it, assign only the others, each expert "
                  "up to its new capacity");
  sub->add_option("--threads", job->threads, "Threads per rank; 0: the machine's cores, shared")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_stop_options(*sub, job->stop);
  auto* no_certificate =
      sub->add_flag("!--no-certificate", job->certificate,
                    "Do not work out how far the assignment is from the best balanced one");
  sub->add_flag("--compare", job->compare,
                "Print what argmax, greedy, margin, optimal and random make of these scores, and "
                "what 16-bit scores cost; write nothing")
      ->excludes("--method")
      ->excludes(no_certificate);
  sub->add_flag("--json", job->json, "Print the figures as one JSON line");
  sub->footer(
      "Every rank reads its own rows only. greedy and margin send no scores; optimal and the\n"
      "certificate send those of a sample and of sequences between two experts.\n"
      "  smalltalk assign --scores scores.h5 --out shards.h5\n"
      "  mpirun -n 4 smalltalk assign --scores scores.h5 --out shards.h5 --method optimal\n"
      "  smalltalk assign --scores scores.h5 --compare");
  sub->callback([&run, job] {
    run = [job] {
      if (job->out.empty() != job->compare) {
        std::cerr << "assign: give --out FILE or --compare, not both and not neither\n";
        return kExitUsage;
      }
      return run_watched(job->stop, "assign", "",
                         [&](Session& session, const auto&) { return assign(*job, session); });
    };
  });
}

}  // namespace smalltalk
