#include "core/assignment/transport.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

Transport::Transport(int64_t num_rows, RowValues row_values, std::vector<double> prices,
                     std::span<const double> reach)
    : num_experts_(prices.size()),
      row_values_(std::move(row_values)),
      prices_(std::move(prices)),
      expert_(static_cast<size_t>(num_rows)),
      limit_(reach.begin(), reach.end()),
      edges_(num_experts_ * num_experts_),
      shortest_(num_experts_ * num_experts_),
      distance_(num_experts_),
      previous_(num_experts_) {
  ST_CHECK(num_rows <= std::numeric_limits<uint32_t>::max());
  for (size_t from = 0; from < num_experts_; ++from) {
    for (size_t to = 0; to < num_experts_; ++to) {
      limit_[from * num_experts_ + to] += prices_[from] - prices_[to];
    }
  }
  std::vector<double> values(num_experts_);
  for (int64_t row = 0; row < num_rows; ++row) {
    row_values_(row, values);
    size_t best = 0;
    for (size_t e = 1; e < num_experts_; ++e) {
      if (values[e] - prices_[e] > values[best] - prices_[best]) best = e;
    }
    expert_[static_cast<size_t>(row)] = static_cast<uint16_t>(best);
    push_edges(static_cast<uint32_t>(row), best, values, false);
  }
  for (size_t pair = 0; pair < edges_.size(); ++pair) {
    std::make_heap(edges_[pair].begin(), edges_[pair].end());
    drop_stale_edges(pair);
  }
}

void Transport::push_edges(uint32_t row, size_t from, std::span<const double> values,
                           bool as_heap) {
  for (size_t to = 0; to < num_experts_; ++to) {
    const size_t pair = from * num_experts_ + to;
    const double loss = values[from] - values[to];
    if (to == from || loss > limit_[pair]) continue;
    edges_[pair].push_back({loss, row});
    if (!as_heap) continue;
    std::push_heap(edges_[pair].begin(), edges_[pair].end());
    shortest_[pair] = edges_[pair].front().loss;
  }
}

void Transport::drop_stale_edges(size_t pair) {
  std::vector<Edge>& heap = edges_[pair];
  while (!heap.empty() && expert_[heap.front().row] != pair / num_experts_) {
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
  }
  if (!heap.empty()) {
    shortest_[pair] = heap.front().loss;
  } else {
    shortest_[pair] = limit_[pair] == -kInfinity ? kInfinity : limit_[pair];
  }
}

size_t Transport::find_path(const std::vector<int64_t>& excess) {
  std::vector<bool> settled(num_experts_);
  for (size_t e = 0; e < num_experts_; ++e) {
    distance_[e] = excess[e] > 0 ? 0 : kInfinity;
    previous_[e] = num_experts_;
  }
  for (;;) {
    size_t nearest = num_experts_;
    for (size_t e = 0; e < num_experts_; ++e) {
      if (!settled[e] && distance_[e] < kInfinity &&
          (nearest == num_experts_ || distance_[e] < distance_[nearest])) {
        nearest = e;
      }
    }
    if (nearest == num_experts_ || excess[nearest] < 0) return nearest;
    settled[nearest] = true;
    for (size_t to = 0; to < num_experts_; ++to) {
      if (settled[to]) continue;
      // Never negative but for the rounding of prices.
      const double length =
          std::max(0.0, shortest_[nearest * num_experts_ + to] - (prices_[nearest] - prices_[to]));
      if (distance_[nearest] + length < distance_[to]) {
        distance_[to] = distance_[nearest] + length;
        previous_[to] = nearest;
      }
    }
  }
}

bool Transport::balance(std::vector<int64_t> excess) {
  std::vector<double> values(num_experts_);
  const auto is_over = [](int64_t count) { return count > 0; };
  while (std::any_of(excess.begin(), excess.end(), is_over)) {
    const size_t last = find_path(excess);
    if (last == num_experts_) return false;
    const double length = distance_[last];
    for (size_t e = 0; e < num_experts_; ++e) {
      if (distance_[e] < length) prices_[e] += length - distance_[e];
    }
    for (size_t to = last; previous_[to] != num_experts_; to = previous_[to]) {
      if (edges_[previous_[to] * num_experts_ + to].empty()) return false;
    }
    // From the end, so that what a step adds to an expert is not what the next one takes from it.
    size_t to = last;
    for (size_t from = previous_[to]; from != num_experts_; from = previous_[to]) {
      const uint32_t row = edges_[from * num_experts_ + to].front().row;
      expert_[row] = static_cast<uint16_t>(to);
      row_values_(row, values);
      push_edges(row, to, values, true);
      for (size_t other = 0; other < num_experts_; ++other) {
        drop_stale_edges(from * num_experts_ + other);
      }
      to = from;
    }
    --excess[to];
    ++excess[last];
  }
  return true;
}

}  // namespace smalltalk
