// smalltalk bench-assignment: the balanced assignment alone, on scores that every rank makes
// itself.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "jobs.hpp"
#include "run_job.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {

namespace {

struct BenchAssignmentJob {
  double sequences = 1e6;  // so that 1e8 can be said
  int64_t experts = 32;
  int bits = 16;
  std::string scores = "clustered";
  std::string method = "greedy";
  int threads = 0;
  int repeat = 1;
  bool json = false;
};

// Bijective; the finaliser of MurmurHash3 (Appleby).
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

// The sum of the four 16-bit words: close to normal, below 2^18.
uint64_t bell(uint64_t x) {
  return (x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48);
}

enum class Kind { iid, clustered, same_order };

// A score is a function of sequence and expert in integers alone, so that ci/bench_assignment.py
// makes the same: "points" below 2^24, of 2^-14 nats each, from -1024 nats up.
template <Kind kind, typename Score>
void make_row(uint64_t sequence, uint64_t experts, Score* row) {
  const uint64_t own = mix(~sequence);
  const uint64_t level = bell(own) << 5;  // what the experts agree on: how easy the sequence is
  const uint64_t home = mix(own) % experts;
  const uint64_t gap = (uint64_t{1} << 22) / experts;
  for (uint64_t e = 0; e < experts; ++e) {
    const uint64_t noise = mix(sequence * experts + e);
    uint64_t points = 0;
    if constexpr (kind == Kind::iid) {
      points = bell(noise) << 4;
    } else if constexpr (kind == Kind::clustered) {
      points =
          level + (bell(noise) << 2) + (e == home ? uint64_t{1} << 19 : 0) + (e << 20) / experts;
    } else {
      points = level + (experts - e) * gap + (noise >> 40) % gap;
    }
    if constexpr (sizeof(Score) == 2) {
      row[e] = static_cast<Score>(points >> 8);
    } else {
      row[e] = static_cast<Score>(static_cast<int32_t>(points) - (1 << 24)) * 0x1p-14F;
    }
  }
}

template <typename Score>
void make_scores(const std::string& kind, int64_t experts, uint64_t first, std::span<Score> values,
                 int threads) {
  constexpr int64_t kPiece = 4096;  // rows
  const int64_t rows = static_cast<int64_t>(values.size()) / experts;
  const auto fill = [&]<Kind which>() {
    parallel_for((rows + kPiece - 1) / kPiece, threads, [&](int64_t piece) {
      for (int64_t row = piece * kPiece; row < std::min(rows, (piece + 1) * kPiece); ++row) {
        make_row<which>(first + static_cast<uint64_t>(row), static_cast<uint64_t>(experts),
                        values.data() + row * experts);
      }
    });
  };
  if (kind == "iid") {
    fill.template operator()<Kind::iid>();
  } else if (kind == "clustered") {
    fill.template operator()<Kind::clustered>();
  } else {
    fill.template operator()<Kind::same_order>();
  }
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Large pages: gigabytes of small ones take longer to get than to fill.
template <typename Score>
std::unique_ptr<Score, Free> allocate(size_t count) {
  constexpr size_t kPage = size_t{2} << 20;
  const size_t bytes = (count * sizeof(Score) + kPage) / kPage * kPage;
  std::unique_ptr<Score, Free> memory(static_cast<Score*>(std::aligned_alloc(kPage, bytes)));
  if (!memory) throw Error(fmt::format("no memory for {} bytes of scores", bytes));
  madvise(memory.get(), bytes, MADV_HUGEPAGE);  // only a wish
  return memory;
}

template <typename Score>
int bench_assignment(const BenchAssignmentJob& job, Session& session) {
  Communicator& world = session.world();
  const HostCollectives ranks = host_collectives(world);
  const int64_t start_memory = world.all_reduce_max(peak_memory_bytes());
  const auto n = static_cast<int64_t>(job.sequences);
  const auto [first, last] = part_of_range(n, world.rank(), world.size());
  const int64_t rows = last - first;
  const auto capacities = balanced_capacities(n, job.experts);
  AssignOptions options;
  options.method = assignment_method(job.method);
  options.certify = false;
  options.threads = job.threads > 0 ? job.threads : threads_per_rank(session);

  const auto count = static_cast<size_t>(rows * job.experts);
  const std::unique_ptr<Score, Free> memory = allocate<Score>(count);
  const std::span<Score> values(memory.get(), count);
  make_scores(job.scores, job.experts, static_cast<uint64_t>(first), values, options.threads);
  LocalScores<Score> scores{job.experts, {{static_cast<uint64_t>(first), values}}, -1024.0, 0x1p-6};

  AssignmentOutcome outcome;
  std::vector<double> seconds;
  for (int repeat = 0; repeat < job.repeat; ++repeat) {
    outcome = {};  // never two at once: the peak is that of one assignment
    world.barrier();
    set_ledger_phase(Phase::assign);
    const double start = now_seconds();
    outcome = assign_sequences(scores, capacities, options, ranks);
    seconds.push_back(now_seconds() - start);
    set_ledger_phase(Phase::start);
  }
  world.all_reduce_max(seconds);
  const int64_t peak = world.all_reduce_max(peak_memory_bytes());
  const auto assigning = [](Phase phase) { return phase == Phase::assign; };
  const int64_t sent = world.all_reduce_max(ledger_outside(assigning).bytes / job.repeat);
  const int64_t score_bytes = world.all_reduce_max(static_cast<int64_t>(values.size_bytes()));
  uint64_t hash = 0;  // a sum, so that it does not depend on who holds what
  for (int64_t i = 0; i < rows; ++i) {
    hash += mix(static_cast<uint64_t>(first + i) << 16 | outcome.expert[static_cast<size_t>(i)]);
  }
  int64_t hash_sum = static_cast<int64_t>(hash);
  world.all_reduce_sum(std::span<int64_t>(&hash_sum, 1));
  if (world.rank() != 0) return kExitDone;

  const SelectionTraffic& traffic = outcome.traffic;
  if (job.json) {
    nlohmann::ordered_json line = {{"sequences", n},
                                   {"experts", job.experts},
                                   {"bits", job.bits},
                                   {"scores", job.scores},
                                   {"method", job.method},
                                   {"ranks", world.size()},
                                   {"threads_per_rank", options.threads},
                                   {"seconds", seconds}};
    if (job.method != "optimal") {
      line["reductions"] = traffic.reductions;
      line["numbers"] = traffic.numbers;
      line["predicted_numbers"] = predicted_selection_numbers(job.experts, traffic.key_bits);
      line["key_bits"] = traffic.key_bits;
    }
    line["bytes_sent_per_rank"] = sent;
    line["start_memory_bytes_per_rank"] = start_memory;  // before there were scores
    line["peak_memory_bytes_per_rank"] = peak;
    line["score_bytes_per_rank"] = score_bytes;
    line["displaced"] = outcome.stats.displaced;
    line["mean_score"] = outcome.stats.mean_score;
    line["largest_argmax_share"] =
        static_cast<double>(std::ranges::max(outcome.stats.argmax_counts)) /
        static_cast<double>(std::max<int64_t>(1, n));
    line["assignment_hash"] = fmt::format("{:016x}", static_cast<uint64_t>(hash_sum));
    std::cout << line.dump() << std::endl;
  } else {
    fmt::print(
        "{} of {} x {} {} scores of {} bits on {} rank(s) x {} thread(s): {:.3f} s; {} sent per "
        "rank; {} of memory beside {} of scores; assignment {:016x}\n",
        job.method, human_count(static_cast<double>(n)), job.experts, job.scores, job.bits,
        world.size(), options.threads, fmt::join(seconds, " s, "),
        human_bytes(static_cast<double>(sent)),
        human_bytes(static_cast<double>(peak - start_memory - score_bytes)),
        human_bytes(static_cast<double>(score_bytes)), static_cast<uint64_t>(hash_sum));
  }
  return kExitDone;
}

}  // namespace

void add_bench_assignment_job(CLI::App& app, JobRun& run) {
  CLI::App* sub =
      app.add_subcommand("bench-assignment", "Measure the balanced assignment on made-up scores");
  const auto job = std::make_shared<BenchAssignmentJob>();
  sub->add_option("--sequences", job->sequences, "N, as in 1e8")
      ->check(CLI::Range(1.0, 1e12))
      ->capture_default_str();
  sub->add_option("--experts", job->experts, "E")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  sub->add_option("--bits", job->bits, "16 (codes) or 32 (float32)")
      ->check(CLI::IsMember({16, 32}))
      ->capture_default_str();
  sub->add_option("--scores", job->scores,
                  "iid; clustered: every sequence has a home, but some experts are better at all; "
                  "same-order: all prefer the experts in the same order")
      ->check(CLI::IsMember({"iid", "clustered", "same-order"}))
      ->capture_default_str();
  sub->add_option("--method", job->method, "greedy, margin or optimal")
      ->check(CLI::IsMember({"greedy", "margin", "optimal"}))
      ->capture_default_str();
  sub->add_option("--threads", job->threads, "Threads per rank; 0: the machine's cores, shared")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_option("--repeat", job->repeat, "How often to assign the same scores")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_flag("--json", job->json, "Print the figures as one JSON line");
  sub->footer(
      "Measured is the assignment alone. Every rank makes its own rows; ci/bench_assignment.sh\n"
      "runs it in many sizes and beside other implementations.\n"
      "  smalltalk bench-assignment --sequences 1e7 --repeat 3\n"
      "  mpirun -n 4 smalltalk bench-assignment --sequences 1e7 --method margin --json");
  sub->callback([&run, job] {
    run = [job] {
      if (job->sequences != std::floor(job->sequences)) {
        std::cerr << "bench-assignment: --sequences must be a whole number\n";
        return kExitUsage;
      }
      return run_session(0, nullptr, "bench-assignment", [&](Session& session) {
        return job->bits == 16 ? bench_assignment<uint16_t>(*job, session)
                               : bench_assignment<float>(*job, session);
      });
    };
  });
}

}  // namespace smalltalk
