// The collectives of a group of ranks as plain functions over host memory, so that code which needs
// them knows no MPI, and a test passes lambdas. Defaults are those of a group of one. All ranks of
// the group must call the same functions in the same order with the same sizes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

struct HostCollectives {
  int rank = 0;
  int size = 1;
  // values <- sum over ranks, the same bits on every rank.
  std::function<void(std::span<float> values)> all_reduce_sum = [](std::span<float>) {};
  // out <- this rank's part of the sum of `in`; in.size() == size * out.size().
  std::function<void(std::span<const float> in, std::span<float> out)> reduce_scatter_sum =
      [](std::span<const float> in, std::span<float> out) {
        std::copy(in.begin(), in.end(), out.begin());
      };
  // all <- the parts of all ranks in order; all.size() == size * mine.size().
  std::function<void(std::span<const float> mine, std::span<float> all)> all_gather =
      [](std::span<const float> mine, std::span<float> all) {
        std::copy(mine.begin(), mine.end(), all.begin());
      };
  std::function<void(std::span<std::byte> bytes, int root)> broadcast = [](std::span<std::byte>,
                                                                           int) {};
  // values <- sums over ranks; integers, so that the result does not depend on the ranks' order.
  std::function<void(std::span<int64_t> values)> all_reduce_sum_int64 = [](std::span<int64_t>) {};
  // values <- largest over ranks.
  std::function<void(std::span<double> values)> all_reduce_max = [](std::span<double>) {};
  // `mine` holds bytes_to[r] bytes for each rank r, in rank order. Returns what the ranks sent to
  // this one, in rank order.
  using Bytes = std::vector<std::byte>;
  std::function<Bytes(std::span<const std::byte> mine, std::span<const int64_t> bytes_to)>
      all_to_all = [](std::span<const std::byte> mine, std::span<const int64_t>) {
        return Bytes(mine.begin(), mine.end());
      };
  // The bytes of all ranks, of any lengths, in rank order.
  std::function<Bytes(std::span<const std::byte> mine)> all_gather_bytes =
      [](std::span<const std::byte> mine) { return Bytes(mine.begin(), mine.end()); };
  // The same on rank `root`, and nothing on the others.
  std::function<Bytes(std::span<const std::byte> mine, int root)> gather_bytes =
      [](std::span<const std::byte> mine, int) { return Bytes(mine.begin(), mine.end()); };
  std::function<void()> barrier = [] {};
};

// Rank 0's value, on all ranks: for what each might see differently on a shared file system.
// Collective.
inline bool first_rank_says(bool value, const HostCollectives& ranks) {
  std::byte byte{value};
  ranks.broadcast({&byte, 1}, 0);
  return byte != std::byte{0};
}

// Bytes that came from ranks, as the values that they sent.
template <typename T>
std::vector<T> values_of(const HostCollectives::Bytes& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// The values of all ranks, of any number each, in rank order. Collective.
template <typename T>
std::vector<T> gather_values(std::span<const T> mine, const HostCollectives& ranks) {
  return values_of<T>(ranks.all_gather_bytes(std::as_bytes(mine)));
}

}  // namespace smalltalk
