#include "smalltalk/core/system/parallel.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace smalltalk {

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) body(i);
    } catch (...) {
      next = count;  // nobody starts another one
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int64_t t = 1; t < std::min<int64_t>(threads, count); ++t) others.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

std::pair<int64_t, int64_t> part_of_range(int64_t size, int index, int parts, int64_t grain) {
  const int64_t grains = (size + grain - 1) / grain;
  return {std::min(size, grains * index / parts * grain),
          std::min(size, grains * (index + 1) / parts * grain)};
}

int available_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores));
}

}  // namespace smalltalk
