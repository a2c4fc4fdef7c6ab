// From a closing table to an assignment, and what an assignment did.
#include <algorithm>
#include <atomic>
#include <string>

#include "core/assignment/row_kernels.hpp"
#include "core/assignment/row_pieces.hpp"
#include "core/assignment/wide_sum.hpp"
#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {
namespace {

// Rows that are worked on together: few enough to stay in cache from one loop to the next.
constexpr int64_t kPieceValues = 1 << 16;

// body(piece, worker): each worker has one piece at a time; there are `threads` of them.
template <typename Score, typename Body>
void for_each_piece(const LocalScores<Score>& scores, int threads, Body&& body) {
  const auto pieces = row_pieces(scores, std::max<int64_t>(1, kPieceValues / scores.num_experts));
  const int64_t workers = std::min<int64_t>(threads, static_cast<int64_t>(pieces.size()));
  std::atomic<size_t> next{static_cast<size_t>(workers)};  // all have one to begin with
  parallel_for(workers, threads, [&](int64_t worker) {
    for (auto i = static_cast<size_t>(worker); i < pieces.size(); i = next++) {
      body(pieces[i], worker);
    }
  });
}

// 2^-24 nats; what is larger than this is no log-likelihood.
int64_t fixed_point(double nats) {
  constexpr double kLargest = 1e11;
  return static_cast<int64_t>(std::clamp(nats, -kLargest, kLargest) * 0x1p24);
}

double score_in_nats(const LocalScores<float>&, float score) { return score; }
double score_in_nats(const LocalScores<uint16_t>& scores, uint16_t code) {
  return scores.lowest + scores.step * code;
}

// What one worker saw. Sums are exact, so that their order does not matter.
struct Tally {
  explicit Tally(size_t experts) : argmax_counts(experts), counts(experts), last(experts) {}

  std::vector<int64_t> argmax_counts;
  std::vector<int64_t> counts;
  std::vector<OrderKey> last;  // key of the last member; meaningless if there is none
  int64_t displaced = 0;
  WideSum score = 0;
  WideSum best_score = 0;

  void add(const Tally& other) {
    for (size_t e = 0; e < counts.size(); ++e) {
      argmax_counts[e] += other.argmax_counts[e];
      counts[e] += other.counts[e];
      last[e] = std::max(last[e], other.last[e]);
    }
    displaced += other.displaced;
    score += other.score;
    best_score += other.best_score;
  }

  void all_reduce(const HostCollectives& ranks) {
    const size_t experts = counts.size();
    std::vector<int64_t> sums = {displaced};
    for (const WideSum sum : {score, best_score}) {
      const auto halves = halves_of(sum);
      sums.insert(sums.end(), halves.begin(), halves.end());
    }
    sums.insert(sums.end(), argmax_counts.begin(), argmax_counts.end());
    sums.insert(sums.end(), counts.begin(), counts.end());
    ranks.all_reduce_sum_int64(sums);
    displaced = sums[0];
    score = join_halves(sums[1], sums[2]);
    best_score = join_halves(sums[3], sums[4]);
    std::copy_n(sums.begin() + 5, experts, argmax_counts.begin());
    std::copy_n(sums.begin() + 5 + static_cast<std::ptrdiff_t>(experts), experts, counts.begin());
    // The last key in two steps, as doubles hold ranks and ids but not both at once.
    std::vector<double> most(experts);
    for (size_t e = 0; e < experts; ++e) most[e] = last[e].rank;
    ranks.all_reduce_max(most);
    for (size_t e = 0; e < experts; ++e) {
      const auto rank = static_cast<uint32_t>(most[e]);
      most[e] = last[e].rank == rank ? static_cast<double>(last[e].sequence) : -1.0;
      last[e].rank = rank;
    }
    ranks.all_reduce_max(most);
    for (size_t e = 0; e < experts; ++e) last[e].sequence = static_cast<uint64_t>(most[e]);
  }

  AssignmentStats stats() const {
    AssignmentStats stats{argmax_counts, counts, displaced, 0, 0};
    int64_t n = 0;
    for (const int64_t count : counts) n += count;
    if (n > 0) {
      stats.mean_score = static_cast<double>(score) * 0x1p-24 / static_cast<double>(n);
      stats.mean_best_score = static_cast<double>(best_score) * 0x1p-24 / static_cast<double>(n);
    }
    return stats;
  }
};

// Adds a piece whose rows went to `expert` to the tally; `best` are the best experts.
template <typename Score>
void tally_scores(const LocalScores<Score>& scores, const RowPiece<Score>& piece,
                  const uint16_t* expert, const std::vector<uint16_t>& best, Tally& tally) {
  const auto experts = static_cast<int64_t>(tally.counts.size());
  for (int64_t i = 0; i < piece.num_rows; ++i) {
    const uint16_t mine = expert[i];
    const uint16_t first = best[static_cast<size_t>(i)];
    ++tally.counts[mine];
    ++tally.argmax_counts[first];
    tally.displaced += mine != first;
    tally.score +=
        fixed_point(score_in_nats(scores, piece.values[static_cast<size_t>(i * experts + mine)]));
    tally.best_score +=
        fixed_point(score_in_nats(scores, piece.values[static_cast<size_t>(i * experts + first)]));
  }
}

Tally sum_up(std::vector<Tally>& tallies, const HostCollectives& ranks) {
  for (size_t i = 1; i < tallies.size(); ++i) tallies[0].add(tallies[i]);
  tallies[0].all_reduce(ranks);
  return std::move(tallies[0]);
}

void require_proof(const AssignmentRule& rule, const Tally& tally) {
  const auto refuse = [](const std::string& what) {
    throw Error("the closing table does not fit these scores: " + what +
                "; it was found for other scores, or is damaged");
  };
  for (size_t e = 0; e < rule.capacities.size(); ++e) {
    if (tally.counts[e] != rule.capacities[e]) {
      refuse("expert " + std::to_string(e) + " gets " + std::to_string(tally.counts[e]) +
             " sequences, its capacity is " + std::to_string(rule.capacities[e]));
    }
  }
  for (const Closing& closing : rule.closings) {
    if (tally.last[closing.expert] != closing.key) {
      refuse("the last sequence of expert " + std::to_string(closing.expert) + " is " +
             std::to_string(tally.last[closing.expert].sequence) + ", the table says " +
             std::to_string(closing.key.sequence));
    }
  }
}

// See row_kernels.hpp. Error if the table is none.
std::vector<int32_t> closed_after(const AssignmentRule& rule) {
  std::vector<int32_t> after(rule.capacities.size());
  for (size_t e = 0; e < after.size(); ++e) {
    after[e] = rule.capacities[e] > 0 ? rows::kNever : -1;
  }
  bool good = std::is_sorted(rule.closings.begin(), rule.closings.end(),
                             [](const Closing& a, const Closing& b) { return a.key < b.key; });
  for (size_t i = 0; i < rule.closings.size() && good; ++i) {
    const uint16_t expert = rule.closings[i].expert;
    good = expert < after.size() && after[expert] == rows::kNever;
    if (good) after[expert] = static_cast<int32_t>(i);
  }
  // Somebody takes what comes last.
  const auto open = std::count(after.begin(), after.end(), rows::kNever);
  if (!good || (open == 0 && !rule.closings.empty())) {
    throw Error("the closing table is damaged: its experts do not close one after the other");
  }
  return after;
}

}  // namespace

template <typename Score>
Assigned apply_rule(const LocalScores<Score>& scores, const AssignmentRule& rule, int threads,
                    const HostCollectives& ranks) {
  const int64_t experts = scores.num_experts;
  if (static_cast<int64_t>(rule.capacities.size()) != experts) {
    throw Error("the closing table is of " + std::to_string(rule.capacities.size()) +
                " experts, the scores are of " + std::to_string(experts));
  }
  const std::vector<int32_t> closed = closed_after(rule);
  // The last key that each expert takes; no row's key is as small as OrderKey{}.
  std::vector<OrderKey> last_key;
  for (const int32_t closing : closed) {
    last_key.push_back(closing < 0 ? OrderKey{} : OrderKey{~uint32_t{0}, ~uint64_t{0}});
  }
  std::vector<uint32_t> closing_ranks;
  for (const Closing& closing : rule.closings) {
    last_key[closing.expert] = closing.key;
    closing_ranks.push_back(closing.key.rank);
  }
  // Counts ranks, which the compiler vectorises, where a binary search would wait for its branches.
  const auto closings_before = [&](const OrderKey& key) {
    int32_t before = 0;
    for (const uint32_t rank : closing_ranks) before += rank < key.rank;
    auto next = static_cast<size_t>(before);
    while (next < closing_ranks.size() && rule.closings[next].key < key) ++next;
    return static_cast<int32_t>(next);
  };
  const bool by_margin = rule.method == AssignmentMethod::margin;
  Assigned result;
  result.expert.resize(static_cast<size_t>(scores.num_rows()));
  std::vector<Tally> tallies(static_cast<size_t>(std::max(threads, 1)),
                             Tally(static_cast<size_t>(experts)));
  for_each_piece(scores, threads, [&](const RowPiece<Score>& piece, int64_t worker) {
    Tally& tally = tallies[static_cast<size_t>(worker)];
    const auto size = static_cast<size_t>(piece.num_rows);
    std::vector<uint16_t> best(size);
    const auto ranked = rows::rank_piece(piece, by_margin, best.data());
    const auto key_of = [&](size_t i) { return OrderKey{ranked[i], piece.first_sequence + i}; };
    uint16_t* expert = result.expert.data() + piece.first_row;
    std::copy(best.begin(), best.end(), expert);
    // Who comes after the closing of its best expert takes another. The next one to be found
    // overwrites what was no find: a branch would be guessed wrong half of the time.
    std::vector<uint32_t> displaced(size);
    size_t found = 0;
    for (size_t i = 0; i < size; ++i) {
      displaced[found] = static_cast<uint32_t>(i);
      found += last_key[best[i]] < key_of(i);
    }
    displaced.resize(found);
    std::vector<int32_t> times;
    for (const uint32_t i : displaced) times.push_back(closings_before(key_of(i)));
    std::vector<uint16_t> others(displaced.size());
    rows::choose_rows(piece.values.data(), displaced, times.data(), closed, others.data());
    for (size_t i = 0; i < displaced.size(); ++i) expert[displaced[i]] = others[i];
    for (size_t i = 0; i < size; ++i) {
      OrderKey& last = tally.last[expert[i]];
      last = std::max(last, key_of(i));
    }
    tally_scores(scores, piece, expert, best, tally);
  });
  const Tally tally = sum_up(tallies, ranks);
  require_proof(rule, tally);
  result.stats = tally.stats();
  return result;
}

template <typename Score>
AssignmentStats assignment_stats(const LocalScores<Score>& scores,
                                 std::span<const uint16_t> assignment, int threads,
                                 const HostCollectives& ranks) {
  if (static_cast<int64_t>(assignment.size()) != scores.num_rows()) {
    throw Error("an assignment of " + std::to_string(assignment.size()) +
                " sequences does not belong to scores of " + std::to_string(scores.num_rows()) +
                " sequences");
  }
  for (size_t i = 0; i < assignment.size(); ++i) {
    if (assignment[i] >= scores.num_experts) {
      throw Error("row " + std::to_string(i) + " is assigned to expert " +
                  std::to_string(assignment[i]) + ", but there are only " +
                  std::to_string(scores.num_experts));
    }
  }
  std::vector<Tally> tallies(static_cast<size_t>(std::max(threads, 1)),
                             Tally(static_cast<size_t>(scores.num_experts)));
  for_each_piece(scores, threads, [&](const RowPiece<Score>& piece, int64_t worker) {
    std::vector<uint16_t> best(static_cast<size_t>(piece.num_rows));
    rows::rank_piece(piece, false, best.data());
    tally_scores(scores, piece, assignment.data() + piece.first_row, best,
                 tallies[static_cast<size_t>(worker)]);
  });
  return sum_up(tallies, ranks).stats();
}

template <typename Score>
Assignment argmax_assignment(const LocalScores<Score>& scores, int threads) {
  Assignment assignment(static_cast<size_t>(scores.num_rows()));
  for_each_piece(scores, threads, [&](const RowPiece<Score>& piece, int64_t) {
    rows::rank_piece(piece, false, assignment.data() + piece.first_row);
  });
  return assignment;
}

#define ST_INSTANTIATE(Score)                                                                     \
  template Assigned apply_rule(const LocalScores<Score>&, const AssignmentRule&, int,             \
                               const HostCollectives&);                                           \
  template AssignmentStats assignment_stats(const LocalScores<Score>&, std::span<const uint16_t>, \
                                            int, const HostCollectives&);                         \
  template Assignment argmax_assignment(const LocalScores<Score>&, int);
ST_INSTANTIATE(float)
ST_INSTANTIATE(uint16_t)
#undef ST_INSTANTIATE

}  // namespace smalltalk
