// Threads as the ranks of a group, for tests of distributed code without MPI.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "smalltalk/core/system/error.hpp"
#include "support/exchanging_collectives.hpp"

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
  return exchanging_collectives(rank, size, [&group, rank](std::span<const std::byte> mine) {
    return group.exchange(rank, mine);
  });
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
