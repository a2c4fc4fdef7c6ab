// Threads as the ranks of a group, for tests of distributed code without MPI.
#pragma once

#include <condition_variable>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

// What the ranks share. A rank that fails frees those that wait for it.
class ThreadGroup {
 public:
  using Bytes = HostCollectives::Bytes;

  explicit ThreadGroup(int size) : size_(size), published_(static_cast<size_t>(size)) {}

  void barrier() {
    std::unique_lock lock(mutex_);
    const int64_t turn = turn_;
    if (++waiting_ == size_) {
      waiting_ = 0;
      ++turn_;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return turn_ != turn || failed_; });
    if (turn_ == turn) throw Error("another rank failed");
  }

  void fail() {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    changed_.notify_all();
  }

  // The bytes of all ranks, by rank.
  std::vector<Bytes> exchange(int rank, std::span<const std::byte> mine) {
    published_[static_cast<size_t>(rank)] = mine;
    barrier();
    std::vector<Bytes> all;
    for (const auto bytes : published_) all.emplace_back(bytes.begin(), bytes.end());
    barrier();
    return all;
  }

 private:
  const int size_;
  std::vector<std::span<const std::byte>> published_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  int64_t turn_ = 0;
  bool failed_ = false;
};

// The collectives of one rank of the group, which must outlive them.
inline HostCollectives thread_collectives(ThreadGroup& group, int rank, int size) {
  using Bytes = HostCollectives::Bytes;
  HostCollectives ranks;
  ranks.rank = rank;
  ranks.size = size;
  ranks.barrier = [&group] { group.barrier(); };
  // values <- the values of all ranks, combined in the order of ranks.
  const auto reduce = [&group, rank](auto values, auto combine) {
    using T = typename decltype(values)::value_type;
    const std::vector<Bytes> all = group.exchange(rank, std::as_bytes(values));
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
  ranks.all_gather_bytes = [&group, rank](std::span<const std::byte> mine) {
    Bytes joined;
    for (const Bytes& bytes : group.exchange(rank, mine)) {
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
  ranks.broadcast = [&group, rank](std::span<std::byte> bytes, int root) {
    const Bytes sent = group.exchange(rank, bytes)[static_cast<size_t>(root)];
    if (sent.size() != bytes.size()) throw Error("ranks broadcast unequal lengths");
    std::copy(sent.begin(), sent.end(), bytes.begin());
  };
  ranks.all_to_all = [&group, rank](std::span<const std::byte> mine,
                                    std::span<const int64_t> bytes_to) {
    const std::vector<Bytes> lengths = group.exchange(rank, std::as_bytes(bytes_to));
    const std::vector<Bytes> all = group.exchange(rank, mine);
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

// Calls body once for each rank, each in its own thread. The first exception is rethrown here.
inline void run_thread_ranks(int size, const std::function<void(const HostCollectives&)>& body) {
  ThreadGroup group(size);
  std::exception_ptr failure;
  std::mutex mutex;
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          body(thread_collectives(group, rank, size));
        } catch (...) {
          {
            const std::lock_guard lock(mutex);
            if (!failure) failure = std::current_exception();
          }
          group.fail();
        }
      });
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace smalltalk
