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
#include "smalltalk/core/assignment/optimal_assignment.hpp"
#include "smalltalk/core/assignment/score_codes.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/mixture/routing/sharding.hpp"

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
std::string request_of(const AssignJob& job, const std::string& base_hash) {
  const auto time = fs::last_write_time(job.scores).time_since_epoch().count();
  return hash_text(fmt::format("{} {} {} {} {} {} {}", fs::canonical(job.scores).string(),
                               fs::file_size(job.scores), time, job.method,
                               job.method == "optimal" ? job.epsilon : 0,
                               fmt::join(job.shares, ","), base_hash));
}

// One row of the comparison.
struct MethodFigures {
  std::string name;
  AssignmentStats stats;
  int64_t differs = -1;  // from greedy on float32 scores
};

// Deals the sequences out at random, as many to each expert as it has room.
Assignment deal_out(const LocalScores<float>& scores, std::span<const int64_t> capacities,
                    int64_t num_sequences, uint64_t first) {
  std::vector<uint64_t> ends;
  for (const int64_t capacity : capacities) {
    ends.push_back((ends.empty() ? 0 : ends.back()) + static_cast<uint64_t>(capacity));
  }
  const Permutation place(static_cast<uint64_t>(std::max<int64_t>(1, num_sequences)),
                          derive_seed(1, "random assignment"));
  Assignment assignment;
  for (const auto& block : scores.blocks) {
    const size_t rows = block.values.size() / ends.size();
    for (size_t row = 0; row < rows; ++row) {
      const uint64_t card = place(block.first_sequence + row - first);
      assignment.push_back(
          static_cast<uint16_t>(std::upper_bound(ends.begin(), ends.end(), card) - ends.begin()));
    }
  }
  return assignment;
}

// What each method makes of the same scores, and what 16 bits cost.
std::vector<MethodFigures> compare_methods(const LocalScores<float>& scores,
                                           std::span<const int64_t> capacities,
                                           int64_t num_sequences, uint64_t first,
                                           const AssignOptions& options,
                                           const HostCollectives& ranks) {
  std::vector<MethodFigures> figures;
  Assignment greedy;
  const auto differs = [&](const Assignment& other) {
    int64_t count = 0;
    for (size_t i = 0; i < greedy.size(); ++i) count += greedy[i] != other[i];
    ranks.all_reduce_sum_int64({&count, 1});
    return count;
  };
  AssignOptions plain = options;
  plain.certify = false;
  for (const auto method :
       {AssignmentMethod::greedy, AssignmentMethod::margin, AssignmentMethod::optimal}) {
    plain.method = method;
    AssignmentOutcome outcome = assign_sequences(scores, capacities, plain, ranks);
    if (method == AssignmentMethod::greedy) greedy = outcome.expert;
    figures.push_back({to_string(method), outcome.stats, differs(outcome.expert)});
  }
  const auto add = [&](const std::string& name, const Assignment& assignment) {
    figures.push_back(
        {name, assignment_stats(scores, assignment, options.threads, ranks), differs(assignment)});
  };
  add("argmax (not balanced)", argmax_assignment(scores, options.threads));
  add("random", deal_out(scores, capacities, num_sequences, first));

  // Greedy on what travels between ranks, judged by the scores themselves.
  std::vector<float> values;
  for (const auto& block : scores.blocks) {
    values.insert(values.end(), block.values.begin(), block.values.end());
  }
  const ScoreCoding coding = find_score_coding(values, ranks);
  std::vector<uint16_t> codes(values.size());
  encode_scores(values, coding, codes);
  LocalScores<uint16_t> coded{scores.num_experts, {}, coding.lowest, coding.step};
  size_t at = 0;
  for (const auto& block : scores.blocks) {
    coded.blocks.push_back(
        {block.first_sequence, std::span(codes).subspan(at, block.values.size())});
    at += block.values.size();
  }
  plain.method = AssignmentMethod::greedy;
  add("greedy on 16-bit codes", assign_sequences(coded, capacities, plain, ranks).expert);
  return figures;
}

void print_comparison(const std::vector<MethodFigures>& figures, double bound,
                      int64_t num_sequences) {
  fmt::print("{:<24} {:>14} {:>14} {:>16} {:>12} {:>14} {:>10}\n", "", "mean score", "mean regret",
             "below the bound", "displaced", "not as greedy", "largest");
  for (const MethodFigures& f : figures) {
    const double regret = f.stats.mean_score - f.stats.mean_best_score;
    fmt::print("{:<24} {:>14.4f} {:>14.4f} {:>16.4f} {:>12} {:>14} {:>10}\n", f.name,
               f.stats.mean_score, regret, bound - regret, f.stats.displaced, f.differs,
               *std::max_element(f.stats.assigned_counts.begin(), f.stats.assigned_counts.end()));
  }
  fmt::print(
      "nats per sequence, {} sequences; bound: no balanced assignment has a larger mean "
      "regret than {:.6f}\n",
      num_sequences, bound);
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

int assign(const AssignJob& job, Session& session) {
  const double start = now_seconds();
  Communicator& world = session.world();
  const HostCollectives ranks = host_collectives(world);
  set_ledger_phase("assign");

  const ScoreFile file(job.scores);
  const int64_t n = file.num_sequences();
  const int64_t experts = file.num_experts();
  const auto capacities = shared_capacities(n, experts, job.shares);
  auto room = capacities;
  int64_t kept = 0;
  std::string base_hash;
  if (!job.append.empty()) {
    const ShardInfo base = read_shard_info(job.append);
    base_hash = base.content_hash;
    kept = base.num_sequences;
    if (base.num_experts() != experts || kept > n) {
      throw Error(
          fmt::format("{} holds {} sequences of {} experts: it is not the beginning of {}, "
                      "which holds {} of {}",
                      job.append, kept, base.num_experts(), job.scores, n, experts));
    }
    room = room_beside(base.sizes(), capacities);
  }
  const std::string request = request_of(job, base_hash);
  if (!job.out.empty() && fs::exists(job.out)) {
    const auto made_from = read_shard_info(job.out).provenance;
    const auto found = made_from.find("request");
    if (found == made_from.end() || found->second != request) {
      throw Error(
          fmt::format("{} is there already, of other scores or another rule; shard files "
                      "are never overwritten: choose another --out",
                      job.out));
    }
    world.barrier();
    log_info(fmt::format("{} is complete", job.out));
    return kExitDone;
  }
  world.barrier();  // everyone has looked before anyone writes
  if (world.rank() == 0 && !job.out.empty()) {
    require_writable(fs::absolute(job.out).parent_path());  // not found out after hours
  }

  const int64_t first = kept + (n - kept) * world.rank() / world.size();
  const int64_t last = kept + (n - kept) * (world.rank() + 1) / world.size();
  const LocalScores<float> scores = file.rows(first, last - first);
  AssignOptions options;
  options.method = assignment_method(job.method);
  options.epsilon = job.epsilon;
  options.certify = job.certificate;
  options.threads = job.threads > 0 ? job.threads : threads_per_rank(session);
  const double read_seconds = now_seconds() - start;

  if (job.compare) {
    const auto figures =
        compare_methods(scores, room, n - kept, static_cast<uint64_t>(kept), options, ranks);
    const double bound = dual_bound(scores, room, options.threads, ranks).mean_regret;
    if (world.rank() != 0) return kExitDone;
    if (!job.json) {
      print_comparison(figures, bound, n - kept);
      return kExitDone;
    }
    Json methods = Json::object();
    for (const MethodFigures& f : figures) {
      methods[f.name] = {{"mean_score", f.stats.mean_score},
                         {"mean_regret", f.stats.mean_score - f.stats.mean_best_score},
                         {"displaced", f.stats.displaced},
                         {"differs_from_greedy", f.differs},
                         {"assigned_counts", f.stats.assigned_counts}};
    }
    std::cout << Json{{"sequences", n - kept},
                      {"experts", experts},
                      {"mean_regret_bound", bound},
                      {"methods", methods}}
                     .dump()
              << std::endl;
    return kExitDone;
  }

  const double assign_start = now_seconds();
  const AssignmentOutcome outcome = assign_sequences(scores, room, options, ranks);
  const double assign_seconds = now_seconds() - assign_start;
  int64_t sent = 0;
  for (const LedgerEntry& entry : ledger_entries()) {
    if (entry.phase == "assign") sent += entry.bytes;
  }
  const double write_start = now_seconds();
  // Who writes copies what is kept.
  Assignment old;
  if (kept > 0 && world.rank() == 0) old = read_shards(job.append).expert;
  write_assignment(
      job.out, capacities, outcome.rule, old, outcome.expert, ranks,
      {{"request", request}, {"scores", job.scores}, {"num_sequences", std::to_string(n)}});
  const int64_t peak = world.all_reduce_max(peak_memory_bytes());
  sent = world.all_reduce_max(sent);
  if (world.rank() != 0) return kExitDone;

  const SelectionTraffic& traffic = outcome.traffic;
  const int id_bits =
      static_cast<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(1, n) - 1)));
  Json figures = {{"method", job.method},
                  {"sequences", n},
                  {"kept_sequences", kept},
                  {"experts", experts},
                  {"ranks", world.size()},
                  {"threads_per_rank", options.threads},
                  {"displaced", outcome.stats.displaced},
                  {"mean_score", outcome.stats.mean_score},
                  {"mean_best_score", outcome.stats.mean_best_score},
                  {"mean_regret", outcome.mean_regret}};
  if (options.certify || job.method == "optimal") figures["mean_regret_bound"] = outcome.bound;
  figures["assigned_counts"] = outcome.stats.assigned_counts;
  figures["seconds"] = {
      {"read", read_seconds}, {"assign", assign_seconds}, {"write", now_seconds() - write_start}};
  figures["bytes_sent_per_rank"] = sent;
  figures["peak_memory_bytes_per_rank"] = peak;
  if (job.method != "optimal") {
    figures["selection"] = {
        {"key_bits", traffic.key_bits},
        {"reductions", traffic.reductions},
        {"numbers", traffic.numbers},
        {"predicted_numbers", predicted_selection_numbers(experts, traffic.key_bits)},
        {"predictions", predictions(experts, traffic.key_bits - id_bits)}};
  }
  if (job.json) std::cout << figures.dump() << std::endl;
  log_info(fmt::format("{}: {} sequences, {} displaced, mean score {:.4f} (best {:.4f}), {}",
                       job.out, n - kept, outcome.stats.displaced, outcome.stats.mean_score,
                       outcome.stats.mean_best_score, human_duration(assign_seconds)));
  if (figures.contains("mean_regret_bound")) {
    log_info(fmt::format("at most {:.6f} nats per sequence below the best balanced assignment",
                         outcome.bound - outcome.mean_regret));
  }
  log_info(fmt::format("{} sent per rank in all", human_bytes(static_cast<double>(sent))));
  if (job.method != "optimal") {
    log_info(fmt::format(
        "{} all-reduces of {} integers in all per rank (b E^2 / 2 = {:.0f} for {} bits): {}",
        traffic.reductions, traffic.numbers, predicted_selection_numbers(experts, traffic.key_bits),
        traffic.key_bits, human_bytes(8 * static_cast<double>(traffic.numbers))));
    for (const Json& row : figures["selection"]["predictions"]) {
      log_info(fmt::format("  predicted for {:>8} sequences: {} per rank",
                           human_count(row["sequences"].get<double>()),
                           human_bytes(row["bytes"].get<double>())));
    }
  }
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
  sub->add_flag("!--no-certificate", job->certificate,
                "Do not work out how far the assignment is from the best balanced one");
  sub->add_flag("--compare", job->compare,
                "Print what argmax, greedy, margin, optimal and random make of these scores, and "
                "what 16-bit scores cost; write nothing");
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
