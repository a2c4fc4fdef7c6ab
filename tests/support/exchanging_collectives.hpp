// The collectives of a group of ranks over one operation, for tests of distributed code without
// MPI.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

// The bytes of all ranks, by rank, once each has called it with its own.
using ExchangeBytes =
    std::function<std::vector<HostCollectives::Bytes>(std::span<const std::byte> mine)>;

inline HostCollectives exchanging_collectives(int rank, int size, const ExchangeBytes& exchange) {
  using Bytes = HostCollectives::Bytes;
  HostCollectives ranks;
  ranks.rank = rank;
  ranks.size = size;
  ranks.barrier = [exchange] { exchange({}); };
  // values <- the values of all ranks, combined in the order of ranks.
  const auto reduce = [exchange](auto values, auto combine) {
    using T = typename decltype(values)::value_type;
    const std::vector<Bytes> all = exchange(std::as_bytes(values));
    for (size_t r = 0; r < all.size(); ++r) {
      if (all[r].size() != values.size_bytes()) throw Error("ranks reduce unequal lengths");
      for (size_t i = 0; i < values.size(); ++i) {
        T other;
        std::memcpy(&other, all[r].data() + i * sizeof(T), sizeof(T));
        values[i] = r == 0 ? other : combine(values[i], other);
      }
    }
  };
  ranks.all_reduce_sum = [reduce](std::span<float> values) { reduce(values, std::plus<float>()); };
  ranks.all_reduce_sum_int64 = [reduce](std::span<int64_t> values) {
    reduce(values, std::plus<int64_t>());
  };
  ranks.all_reduce_max = [reduce](std::span<double> values) {
    reduce(values, [](double a, double b) { return std::max(a, b); });
  };
  ranks.reduce_scatter_sum = [reduce, rank](std::span<const float> in, std::span<float> out) {
    std::vector<float> sum(in.begin(), in.end());
    reduce(std::span(sum), std::plus<float>());
    std::copy_n(sum.begin() + static_cast<ptrdiff_t>(out.size()) * rank, out.size(), out.begin());
  };
  ranks.all_gather_bytes = [exchange](std::span<const std::byte> mine) {
    Bytes joined;
    for (const Bytes& bytes : exchange(mine)) {
      joined.insert(joined.end(), bytes.begin(), bytes.end());
    }
    return joined;
  };
  ranks.gather_bytes = [rank, gather = ranks.all_gather_bytes](std::span<const std::byte> mine,
                                                               int root) {
    const Bytes joined = gather(mine);
    return rank == root ? joined : Bytes();
  };
  ranks.all_gather = [gather = ranks.all_gather_bytes](std::span<const float> mine,
                                                       std::span<float> all) {
    const Bytes bytes = gather(std::as_bytes(mine));
    if (bytes.size() != all.size_bytes()) throw Error("ranks gather unequal lengths");
    std::memcpy(all.data(), bytes.data(), bytes.size());
  };
  ranks.broadcast = [exchange](std::span<std::byte> bytes, int root) {
    const Bytes sent = exchange(bytes)[static_cast<size_t>(root)];
    if (sent.size() != bytes.size()) throw Error("ranks broadcast unequal lengths");
    std::copy(sent.begin(), sent.end(), bytes.begin());
  };
  ranks.all_to_all = [exchange, rank](std::span<const std::byte> mine,
                                      std::span<const int64_t> bytes_to) {
    const std::vector<Bytes> lengths = exchange(std::as_bytes(bytes_to));
    const std::vector<Bytes> all = exchange(mine);
    Bytes received;
    for (size_t r = 0; r < all.size(); ++r) {
      std::vector<int64_t> sent_to(all.size());
      if (lengths[r].size() != sent_to.size() * sizeof(int64_t)) {
        throw Error("all_to_all needs one length for each rank");
      }
      std::memcpy(sent_to.data(), lengths[r].data(), lengths[r].size());
      ptrdiff_t first = 0;
      for (int to = 0; to < rank; ++to) first += sent_to[static_cast<size_t>(to)];
      const auto begin = all[r].begin() + first;
      received.insert(received.end(), begin, begin + sent_to[static_cast<size_t>(rank)]);
    }
    return received;
  };
  return ranks;
}

}  // namespace smalltalk
