// The selections that find a closing table; see balanced_assignment.hpp.
#include <algorithm>
#include <bit>
#include <memory>

#include "core/assignment/choosing_order.hpp"
#include "core/assignment/row_pieces.hpp"
#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {
namespace {

// A key as one number: rank, then sequence.
__extension__ using KeyNumber = unsigned __int128;

// All keys of all ranks lie between these.
struct KeySpace {
  uint32_t first_rank = 0;
  int rank_bits = 0;
  int sequence_bits = 0;

  int bits() const { return rank_bits + sequence_bits; }
  KeyNumber last() const { return (KeyNumber{1} << bits()) - 1; }
  OrderKey key(KeyNumber number) const {
    const auto sequence = static_cast<uint64_t>(number & ((KeyNumber{1} << sequence_bits) - 1));
    const auto rank = first_rank + static_cast<uint64_t>(number >> sequence_bits);
    return {static_cast<uint32_t>(std::min<uint64_t>(rank, 0xFFFFFFFFU)), sequence};
  }
};

constexpr int64_t kRowsWorthThreads = 1 << 15;

template <typename Score>
class TableFinder {
 public:
  TableFinder(const LocalScores<Score>& scores, std::span<const int64_t> capacities,
              AssignmentMethod method, int threads, const HostCollectives& ranks,
              SelectionTraffic& traffic)
      : capacities_(capacities),
        threads_(threads),
        ranks_(ranks),
        traffic_(traffic),
        closed_after_(capacities.size(), rows::kNever) {
    make_orders(scores, method == AssignmentMethod::margin);
    make_key_space();
    for (size_t e = 0; e < capacities.size(); ++e) {
      if (capacities[e] > 0) {
        open_.push_back(static_cast<uint16_t>(e));
      } else {
        closed_after_[e] = -1;
      }
    }
  }

  std::vector<Closing> find() {
    std::vector<Closing> closings;
    if (open_.empty()) return closings;
    KeyNumber first = 0;  // all keys before it are settled
    KeyNumber step = std::max<KeyNumber>(1, space_.last() / (4 * open_.size()));
    while (open_.size() > 1) {
      const Fill fill = next_fill(first, step);
      step = fill.key - first + 1;
      first = fill.key + 1;
      closings.push_back({fill.expert, space_.key(fill.key)});
      close(closings.back());
    }
    return closings;
  }

 private:
  struct Fill {
    KeyNumber key = 0;
    uint16_t expert = 0;
  };

  void make_orders(const LocalScores<Score>& scores, bool by_margin) {
    // Several for each thread, but not so many that looking into each of them would count.
    const int64_t rows = std::clamp(scores.num_rows() / (4 * int64_t{std::max(threads_, 1)}),
                                    kRowsWorthThreads, ChoosingOrder<Score>::kMaxRows);
    const auto pieces = row_pieces(scores, rows);
    orders_.resize(pieces.size());
    parallel_for(static_cast<int64_t>(pieces.size()), threads_, [&](int64_t i) {
      const auto index = static_cast<size_t>(i);
      orders_[index] = std::make_unique<ChoosingOrder<Score>>(pieces[index], by_margin);
    });
  }

  // Doubles hold ranks (32 bits) and ids (below 2^53) exactly.
  void make_key_space() {
    constexpr double kNone = -1e300;
    std::vector<double> most = {kNone, kNone, kNone};  // -first rank, last rank, last sequence
    for (const auto& order : orders_) {
      const double last =
          static_cast<double>(order->first_sequence()) + static_cast<double>(order->num_rows() - 1);
      most[0] = std::max(most[0], -static_cast<double>(order->first_rank()));
      most[1] = std::max(most[1], static_cast<double>(order->last_rank()));
      most[2] = std::max(most[2], last);
    }
    ranks_.all_reduce_max(most);
    if (most[1] == kNone) return;
    space_.first_rank = static_cast<uint32_t>(-most[0]);
    space_.rank_bits = std::bit_width(static_cast<uint32_t>(most[1]) - space_.first_rank);
    space_.sequence_bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(most[2])));
    traffic_.key_bits = space_.bits();
  }

  // The smallest key from `first` on at which an open expert has no room left. It is looked for in
  // growing steps, then by bisection: what nobody will ask for again is not worked out.
  Fill next_fill(KeyNumber first, KeyNumber step) {
    Fill fill;
    KeyNumber last = space_.last();
    while (true) {
      const bool whole = step > last - first;
      const KeyNumber probe = whole ? last : first + step - 1;
      if (full_at(probe, fill)) {
        last = probe;
        break;
      }
      ST_CHECK(!whole);  // capacities sum to the number of sequences
      first = probe + 1;
      step *= 4;
    }
    while (first < last) {
      const KeyNumber middle = first + (last - first) / 2;
      if (full_at(middle, fill)) {
        last = middle;
      } else {
        first = middle + 1;
      }
    }
    return fill;
  }

  // Whether an open expert is full once everybody up to the key has chosen. All ranks agree.
  bool full_at(KeyNumber number, Fill& fill) {
    const OrderKey key = space_.key(number);
    std::vector<int64_t> places(orders_.size());
    int64_t unknown = 0;
    for (size_t i = 0; i < orders_.size(); ++i) {
      places[i] = orders_[i]->place_after(key);
      unknown += orders_[i]->unknown_before(places[i]);
    }
    for_orders(unknown,
               [&](size_t i) { orders_[i]->choose_until(places[i], closed_after_, time_); });
    std::vector<int64_t> counts(capacities_.size());
    for (size_t i = 0; i < orders_.size(); ++i) orders_[i]->count_choices(places[i], counts);
    std::vector<int64_t> of_open(open_.size());
    for (size_t i = 0; i < open_.size(); ++i) of_open[i] = counts[open_[i]];
    ranks_.all_reduce_sum_int64(of_open);
    ++traffic_.reductions;
    traffic_.numbers += static_cast<int64_t>(of_open.size());
    for (size_t i = 0; i < open_.size(); ++i) {
      if (of_open[i] < capacities_[open_[i]]) continue;
      fill = {number, open_[i]};
      return true;
    }
    return false;
  }

  void close(const Closing& closing) {
    closed_after_[closing.expert] = time_++;
    std::erase(open_, closing.expert);
    for (const auto& order : orders_) order->forget_from(order->place_after(closing.key));
  }

  template <typename Body>
  void for_orders(int64_t rows, Body&& body) {
    const int threads = rows < kRowsWorthThreads ? 1 : threads_;
    parallel_for(static_cast<int64_t>(orders_.size()), threads,
                 [&](int64_t i) { body(static_cast<size_t>(i)); });
  }

  std::span<const int64_t> capacities_;
  int threads_;
  const HostCollectives& ranks_;
  SelectionTraffic& traffic_;
  std::vector<std::unique_ptr<ChoosingOrder<Score>>> orders_;
  KeySpace space_;
  std::vector<uint16_t> open_;
  std::vector<int32_t> closed_after_;  // see row_kernels.hpp
  int32_t time_ = 0;                   // closings so far
};

}  // namespace

double predicted_selection_numbers(int64_t num_experts, int key_bits) {
  return 0.5 * key_bits * static_cast<double>(num_experts) * static_cast<double>(num_experts);
}

template <typename Score>
AssignmentRule balanced_rule(const LocalScores<Score>& scores, std::span<const int64_t> capacities,
                             AssignmentMethod method, int threads, const HostCollectives& ranks,
                             SelectionTraffic* traffic) {
  if (method != AssignmentMethod::greedy && method != AssignmentMethod::margin) {
    throw Error("a closing table is found by the method greedy or margin, not " +
                to_string(method));
  }
  require_capacities(capacities, scores.num_experts, scores.num_rows(), ranks);
  SelectionTraffic moved;
  TableFinder<Score> finder(scores, capacities, method, threads, ranks, moved);
  AssignmentRule rule{method, {capacities.begin(), capacities.end()}, finder.find(), {}};
  if (traffic != nullptr) *traffic = moved;
  return rule;
}

template AssignmentRule balanced_rule(const LocalScores<float>&, std::span<const int64_t>,
                                      AssignmentMethod, int, const HostCollectives&,
                                      SelectionTraffic*);
template AssignmentRule balanced_rule(const LocalScores<uint16_t>&, std::span<const int64_t>,
                                      AssignmentMethod, int, const HostCollectives&,
                                      SelectionTraffic*);

}  // namespace smalltalk
