// N sequences, E experts. Level: the sequences whose hash is below a limit; the last one has all.
#include "smalltalk/core/assignment/optimal_assignment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>

#include "core/assignment/row_kernels.hpp"
#include "core/assignment/row_pieces.hpp"
#include "core/assignment/transport.hpp"
#include "core/assignment/wide_sum.hpp"
#include "core/system/xxh3.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

using Wide = WideSum;  // 2^32 sequences times 2^53 steps

constexpr double kLowestRegret = -0x1p20;
constexpr double kHighestPrice = 0x1p27;
constexpr double kPriceOfNoPlace = 0x1p26;  // above every regret: an expert of capacity 0
constexpr int64_t kRowsOfPiece = 8192;
constexpr int64_t kFirstLevel = 4096;  // sequences
constexpr int64_t kLevelOfBound = 1 << 20;
constexpr int64_t kLevelGrowth = 16;
constexpr int64_t kSampleRows = 1 << 16;
constexpr int64_t kSampleScores = 1 << 24;
constexpr int kMaxRounds = 20;
constexpr double kNoiseOfBound = 0x1p-13;  // nats
constexpr uint64_t kLevelSeed = 1;
constexpr uint64_t kNoiseSeed = 2;

// Integers in steps of 2^-24, kept in doubles: sums and differences below 2^29 nats are exact.
// Adding a number whose last digit is worth 2^-24 rounds to it.
constexpr double kStepsOfNat = 0x1p24;
double on_grid(double nats) { return (nats + 0x1.8p28) - 0x1.8p28; }
int64_t steps(double on_grid_nats) { return static_cast<int64_t>(on_grid_nats * kStepsOfNat); }

uint64_t hash(uint64_t value, uint64_t seed) {
  return XXH3_64bits_withSeed(&value, sizeof(value), seed);
}

// Rows that are on all ranks, in the order of their sequences.
template <typename Score>
struct SharedRows {
  std::vector<uint64_t> sequences;
  std::vector<Score> values;  // [rows, E]
};

template <typename Score>
SharedRows<Score> share_rows(SharedRows<Score> mine, size_t num_experts,
                             const HostCollectives& ranks) {
  SharedRows<Score> all;
  const std::vector<uint64_t> sequences = gather_values<uint64_t>(mine.sequences, ranks);
  const std::vector<Score> values = gather_values<Score>(mine.values, ranks);
  mine = {};
  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return sequences[a] < sequences[b]; });
  all.sequences.reserve(sequences.size());
  all.values.reserve(values.size());
  for (const size_t row : order) {
    all.sequences.push_back(sequences[row]);
    const auto first = values.begin() + static_cast<ptrdiff_t>(row * num_experts);
    all.values.insert(all.values.end(), first, first + static_cast<ptrdiff_t>(num_experts));
  }
  return all;
}

// count out of whole of each capacity, by largest remainders.
std::vector<int64_t> scaled_capacities(std::span<const int64_t> capacities, int64_t count,
                                       int64_t whole) {
  std::vector<int64_t> scaled(capacities.size());
  if (count == 0) return scaled;
  std::vector<std::pair<int64_t, size_t>> remainders;
  int64_t missing = count;
  for (size_t e = 0; e < capacities.size(); ++e) {
    const Wide product = Wide{capacities[e]} * count;
    scaled[e] = static_cast<int64_t>(product / whole);
    missing -= scaled[e];
    remainders.emplace_back(-static_cast<int64_t>(product % whole), e);
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t i = 0; i < static_cast<size_t>(missing); ++i) ++scaled[remainders[i].second];
  return scaled;
}

template <typename Score>
class Search {
 public:
  // Noise: how far apart, in nats, scores may be moved.
  Search(const LocalScores<Score>& scores, std::span<const int64_t> capacities, double noise,
         int threads, const HostCollectives& ranks);

  int64_t num_sequences() const { return num_sequences_; }
  const std::vector<double>& prices() const { return prices_; }

  // The best prices for a level of so many sequences; if it has all, also their experts.
  void solve(int64_t size, Assignment* expert);

  // Sums over all ranks, in steps.
  struct Totals {
    Wide bound = 0;   // D(prices), in regrets
    Wide regret = 0;  // of the assignment
  };
  Totals totals(const Assignment* expert);

 private:
  void check(std::span<const int64_t> capacities, const LocalScores<Score>& scores);
  void regrets(const Score* row, uint64_t sequence, std::span<double> out) const;
  // As the search sees them: no two alike.
  void noisy_regrets(const Score* row, uint64_t sequence, std::span<double> out) const;
  bool in_level(uint64_t sequence, int64_t size) const;
  // reach [E, E] for Transport: takes in, of those that sit at an expert, the share that loses
  // least when it moves, and at least a few for each pair of experts.
  std::vector<double> reach(double widen) const;
  std::vector<double> unlimited_reach() const;
  void gather_sample();
  // False if reach was too short; the prices are better than before.
  bool improve(int64_t size, const std::vector<double>& reach, Assignment* expert);
  void normalise_prices();
  Wide sum_over_ranks(Wide value) const;

  size_t num_experts_;
  std::span<const int64_t> capacities_;
  int threads_;
  const HostCollectives& ranks_;
  double step_;
  int64_t num_sequences_ = 0;
  size_t num_rows_ = 0;
  std::vector<RowPiece<Score>> pieces_;
  double noise_scale_;
  std::vector<uint64_t> noise_multipliers_;  // [E]
  SharedRows<Score> sample_;
  std::vector<double> prices_;  // [E]
  int64_t level_ = 0;           // sequences for which the prices are best
};

template <typename Score>
Search<Score>::Search(const LocalScores<Score>& scores, std::span<const int64_t> capacities,
                      double noise, int threads, const HostCollectives& ranks)
    : num_experts_(static_cast<size_t>(scores.num_experts)),
      capacities_(capacities),
      threads_(threads),
      ranks_(ranks),
      step_(std::is_same_v<Score, float> ? 1 : scores.step),
      noise_scale_(noise * 0x1p-32) {
  check(capacities, scores);
  num_rows_ = static_cast<size_t>(scores.num_rows());
  pieces_ = row_pieces(scores, kRowsOfPiece);
  for (size_t e = 0; e < num_experts_; ++e) {
    noise_multipliers_.push_back(hash(e, kNoiseSeed) | 1);
    prices_.push_back(capacities[e] == 0 ? kPriceOfNoPlace : 0);
  }
}

template <typename Score>
void Search<Score>::check(std::span<const int64_t> capacities, const LocalScores<Score>& scores) {
  if (num_experts_ < 1 || scores.num_experts > kMaxOptimalExperts) {
    throw Error("an optimal assignment is for 1 to " + std::to_string(kMaxOptimalExperts) +
                " experts, not " + std::to_string(scores.num_experts));
  }
  if (!(step_ >= 0) || !std::isfinite(step_)) {
    throw Error("the step of score codes is " + std::to_string(step_) +
                "; a higher code must be a higher score");
  }
  num_sequences_ = require_capacities(capacities, scores.num_experts, scores.num_rows(), ranks_);
}

template <typename Score>
void Search<Score>::regrets(const Score* row, uint64_t sequence, std::span<double> out) const {
  Score best = row[0];
  bool finite = true;
  for (size_t e = 0; e < num_experts_; ++e) {
    if (row[e] > best) best = row[e];
    if constexpr (std::is_same_v<Score, float>) finite &= std::isfinite(row[e]);
  }
  if (!finite) rows::refuse_row(row, static_cast<int64_t>(num_experts_), sequence);
  for (size_t e = 0; e < num_experts_; ++e) {
    const double regret = (static_cast<double>(row[e]) - static_cast<double>(best)) * step_;
    out[e] = regret > kLowestRegret ? regret : kLowestRegret;
  }
}

template <typename Score>
void Search<Score>::noisy_regrets(const Score* row, uint64_t sequence,
                                  std::span<double> out) const {
  regrets(row, sequence, out);
  const uint64_t noise = hash(sequence, kNoiseSeed);
  for (size_t e = 0; e < num_experts_; ++e) {
    const auto word = static_cast<int32_t>((noise * noise_multipliers_[e]) >> 32);
    out[e] += noise_scale_ * word;
  }
}

template <typename Score>
bool Search<Score>::in_level(uint64_t sequence, int64_t size) const {
  if (size >= num_sequences_) return true;
  const double place = unit_interval(hash(sequence, kLevelSeed));
  return place * static_cast<double>(num_sequences_) < static_cast<double>(size);
}

template <typename Score>
std::vector<double> Search<Score>::unlimited_reach() const {
  std::vector<double> reach(num_experts_ * num_experts_, kInfinity);
  for (size_t from = 0; from < num_experts_; ++from) {
    for (size_t to = 0; to < num_experts_; ++to) {
      if (to == from || capacities_[to] == 0) reach[from * num_experts_ + to] = -kInfinity;
    }
  }
  return reach;
}

template <typename Score>
std::vector<double> Search<Score>::reach(double widen) const {
  std::vector<double> reach = unlimited_reach();
  const auto row_values = [&](size_t row, std::span<double> out) {
    noisy_regrets(sample_.values.data() + row * num_experts_, sample_.sequences[row], out);
    for (size_t e = 0; e < num_experts_; ++e) out[e] -= prices_[e];
  };
  std::vector<double> values(num_experts_);
  std::vector<std::vector<size_t>> members(num_experts_);
  for (size_t row = 0; row < sample_.sequences.size(); ++row) {
    row_values(row, values);
    members[static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin())]
        .push_back(row);
  }
  constexpr size_t kFewMembers = 8;  // say nothing about their expert: it keeps everything
  parallel_for(static_cast<int64_t>(num_experts_), threads_, [&](int64_t expert) {
    const auto from = static_cast<size_t>(expert);
    const size_t count = members[from].size();
    if (count < kFewMembers) return;
    // The prices fit a level in which an expert has so many members; on others the number that
    // wants to sit there is off by the square root of it, and four of them are a safe distance.
    const double expected = static_cast<double>(level_) * static_cast<double>(capacities_[from]) /
                            static_cast<double>(num_sequences_);
    const double share = std::min(0.5, 4 / std::sqrt(std::max(1.0, expected))) * widen;
    if (share >= 1) return;
    std::vector<double> row(num_experts_);
    std::vector<double> losses(num_experts_ * count);  // [E, count]
    std::vector<double> least(count, kInfinity);
    for (size_t i = 0; i < count; ++i) {
      row_values(members[from][i], row);
      for (size_t to = 0; to < num_experts_; ++to) {
        losses[to * count + i] = row[from] - row[to];
        if (to != from) least[i] = std::min(least[i], row[from] - row[to]);
      }
    }
    const auto smallest = [&](double* first, double number) {
      double* place = first + static_cast<size_t>(number);
      std::nth_element(first, place, first + count);
      return *place;
    };
    const double members_in_reach = share * static_cast<double>(count);
    const double common = smallest(least.data(), members_in_reach);
    for (size_t to = 0; to < num_experts_; ++to) {
      double& limit = reach[from * num_experts_ + to];
      if (limit < 0) continue;
      limit = std::max(common, smallest(losses.data() + to * count,
                                        members_in_reach / static_cast<double>(num_experts_)));
    }
  });
  return reach;
}

template <typename Score>
bool Search<Score>::improve(int64_t size, const std::vector<double>& reach, Assignment* expert) {
  std::vector<int64_t> counts(num_experts_);
  SharedRows<Score> near;
  std::mutex mutex;
  parallel_for(static_cast<int64_t>(pieces_.size()), threads_, [&](int64_t index) {
    const RowPiece<Score>& piece = pieces_[static_cast<size_t>(index)];
    std::vector<double> values(num_experts_);
    std::vector<int64_t> piece_counts(num_experts_);
    SharedRows<Score> piece_near;
    for (size_t row = 0; row < static_cast<size_t>(piece.num_rows); ++row) {
      const uint64_t sequence = piece.first_sequence + row;
      if (!in_level(sequence, size)) continue;
      const Score* scores = piece.values.data() + row * num_experts_;
      noisy_regrets(scores, sequence, values);
      size_t best = 0;
      for (size_t e = 0; e < num_experts_; ++e) {
        values[e] -= prices_[e];
        if (values[e] > values[best]) best = e;
      }
      ++piece_counts[best];
      if (expert != nullptr)
        (*expert)[static_cast<size_t>(piece.first_row) + row] = static_cast<uint16_t>(best);
      const double* limit = reach.data() + best * num_experts_;
      bool is_near = false;
      for (size_t e = 0; e < num_experts_; ++e) is_near |= values[best] - values[e] <= limit[e];
      if (!is_near) continue;
      piece_near.sequences.push_back(sequence);
      piece_near.values.insert(piece_near.values.end(), scores, scores + num_experts_);
    }
    const std::lock_guard lock(mutex);  // in any order: counts are integers, rows will be sorted
    for (size_t e = 0; e < num_experts_; ++e) counts[e] += piece_counts[e];
    near.sequences.insert(near.sequences.end(), piece_near.sequences.begin(),
                          piece_near.sequences.end());
    near.values.insert(near.values.end(), piece_near.values.begin(), piece_near.values.end());
  });
  ranks_.all_reduce_sum_int64(counts);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const std::vector<int64_t> room = scaled_capacities(capacities_, total, num_sequences_);
  for (size_t e = 0; e < num_experts_; ++e) counts[e] -= room[e];

  near = share_rows(std::move(near), num_experts_, ranks_);
  const auto num_near = static_cast<int64_t>(near.sequences.size());
  const auto row_values = [&](int64_t row, std::span<double> out) {
    const auto i = static_cast<size_t>(row);
    noisy_regrets(near.values.data() + i * num_experts_, near.sequences[i], out);
  };
  Transport transport(num_near, row_values, prices_, reach);
  const bool balanced = transport.balance(std::move(counts));
  prices_ = transport.prices();
  normalise_prices();
  if (expert == nullptr) return balanced;
  for (const RowPiece<Score>& piece : pieces_) {
    const auto& all = near.sequences;
    auto place = std::lower_bound(all.begin(), all.end(), piece.first_sequence);
    for (; place != all.end() &&
           *place < piece.first_sequence + static_cast<uint64_t>(piece.num_rows);
         ++place) {
      (*expert)[static_cast<size_t>(piece.first_row) + (*place - piece.first_sequence)] =
          transport.expert(place - all.begin());
    }
  }
  return balanced;
}

// Prices count only against each other.
template <typename Score>
void Search<Score>::normalise_prices() {
  double lowest = kInfinity;
  for (size_t e = 0; e < num_experts_; ++e) {
    if (capacities_[e] > 0) lowest = std::min(lowest, prices_[e]);
  }
  for (size_t e = 0; e < num_experts_; ++e) {
    if (capacities_[e] > 0) prices_[e] -= lowest;
  }
}

template <typename Score>
void Search<Score>::gather_sample() {
  const int64_t size = std::min(kSampleRows, kSampleScores / static_cast<int64_t>(num_experts_));
  std::mutex mutex;
  parallel_for(static_cast<int64_t>(pieces_.size()), threads_, [&](int64_t index) {
    const RowPiece<Score>& piece = pieces_[static_cast<size_t>(index)];
    for (size_t row = 0; row < static_cast<size_t>(piece.num_rows); ++row) {
      if (!in_level(piece.first_sequence + row, size)) continue;
      const Score* scores = piece.values.data() + row * num_experts_;
      const std::lock_guard lock(mutex);
      sample_.sequences.push_back(piece.first_sequence + row);
      sample_.values.insert(sample_.values.end(), scores, scores + num_experts_);
    }
  });
  sample_ = share_rows(std::move(sample_), num_experts_, ranks_);
}

template <typename Score>
void Search<Score>::solve(int64_t size, Assignment* expert) {
  if (expert != nullptr) expert->resize(num_rows_);
  const int64_t first = std::max(kFirstLevel, 16 * static_cast<int64_t>(num_experts_));
  if (size <= first) {
    ST_CHECK(improve(size, unlimited_reach(), expert));
    return;
  }
  gather_sample();
  ST_CHECK(improve(first, unlimited_reach(), nullptr));
  for (level_ = first; level_ < size;) {
    // The last one should be a good step larger, too.
    const int64_t next = level_ * kLevelGrowth * 2 > size ? size : level_ * kLevelGrowth;
    Assignment* result = next == size ? expert : nullptr;
    // Each round goes on from the prices of the last one, with fewer sequences out of place, so
    // that looking further is rarely worth its memory.
    int round = 0;
    while (!improve(next, reach(std::exp2(std::max(0, round - 3))), result)) {
      run_together(ranks_, stop_if_asked);
      if (++round == kMaxRounds) throw Error("the search for an optimal assignment got stuck");
    }
    level_ = next;
  }
}

template <typename Score>
Wide Search<Score>::sum_over_ranks(Wide value) const {
  auto halves = halves_of(value);
  ranks_.all_reduce_sum_int64(halves);
  return join_halves(halves[0], halves[1]);
}

template <typename Score>
typename Search<Score>::Totals Search<Score>::totals(const Assignment* expert) {
  // The prices as they are told are those of the bound.
  for (double& price : prices_) {
    price = on_grid(std::clamp(price, -kHighestPrice, kHighestPrice));
  }
  Totals sums;
  std::mutex mutex;
  parallel_for(static_cast<int64_t>(pieces_.size()), threads_, [&](int64_t index) {
    const RowPiece<Score>& piece = pieces_[static_cast<size_t>(index)];
    std::vector<double> values(num_experts_);
    Totals piece_sums;
    for (size_t row = 0; row < static_cast<size_t>(piece.num_rows); ++row) {
      regrets(piece.values.data() + row * num_experts_, piece.first_sequence + row, values);
      double best = -kInfinity;
      for (size_t e = 0; e < num_experts_; ++e) {
        values[e] = on_grid(values[e]);
        const double value = values[e] - prices_[e];
        best = value > best ? value : best;
      }
      piece_sums.bound += steps(best);
      if (expert != nullptr) {
        piece_sums.regret += steps(values[(*expert)[static_cast<size_t>(piece.first_row) + row]]);
      }
    }
    const std::lock_guard lock(mutex);
    sums.bound += piece_sums.bound;
    sums.regret += piece_sums.regret;
  });
  sums.bound = sum_over_ranks(sums.bound);
  sums.regret = sum_over_ranks(sums.regret);
  for (size_t e = 0; e < num_experts_; ++e) sums.bound += Wide{capacities_[e]} * steps(prices_[e]);
  return sums;
}

double mean_nats(Wide total_steps, int64_t count) {
  if (count == 0) return 0;
  return static_cast<double>(total_steps) / static_cast<double>(count) / kStepsOfNat;
}

// One step more than the sum of rounded regrets holds for the scores themselves, too.
double mean_bound(Wide total_steps, int64_t count) {
  return std::min(0.0, mean_nats(total_steps + count, count));
}

}  // namespace

template <typename Score>
DualBound dual_bound(const LocalScores<Score>& scores, std::span<const int64_t> capacities,
                     int threads, const HostCollectives& ranks) {
  Search<Score> search(scores, capacities, kNoiseOfBound, threads, ranks);
  search.solve(std::min(kLevelOfBound, search.num_sequences()), nullptr);
  const auto totals = search.totals(nullptr);
  return {search.prices(), mean_bound(totals.bound, search.num_sequences())};
}

template <typename Score>
OptimalAssignment optimal_assignment(const LocalScores<Score>& scores,
                                     std::span<const int64_t> capacities, double epsilon,
                                     int threads, const HostCollectives& ranks) {
  if (!(epsilon >= 1e-6)) throw Error("the epsilon of an optimal assignment must be at least 1e-6");
  Search<Score> search(scores, capacities, epsilon / 4, threads, ranks);
  const int64_t n = search.num_sequences();
  OptimalAssignment result;
  search.solve(n, &result.expert);
  const auto totals = search.totals(&result.expert);
  result.prices = search.prices();
  result.mean_regret = mean_nats(totals.regret, n);
  result.bound = mean_bound(totals.bound, n);
  if (const double gap = result.bound - result.mean_regret; gap > epsilon) {
    throw Error("the assignment is within " + std::to_string(gap) +
                " nats per sequence of the bound, not within " + std::to_string(epsilon) +
                "; allow a larger epsilon");
  }
  return result;
}

template DualBound dual_bound(const LocalScores<float>&, std::span<const int64_t>, int,
                              const HostCollectives&);
template DualBound dual_bound(const LocalScores<uint16_t>&, std::span<const int64_t>, int,
                              const HostCollectives&);
template OptimalAssignment optimal_assignment(const LocalScores<float>&, std::span<const int64_t>,
                                              double, int, const HostCollectives&);
template OptimalAssignment optimal_assignment(const LocalScores<uint16_t>&,
                                              std::span<const int64_t>, double, int,
                                              const HostCollectives&);

}  // namespace smalltalk
