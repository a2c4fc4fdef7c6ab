// Work of one process on its cores, and shares of work in general.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

namespace smalltalk {

// Calls body(0) .. body(count - 1), each once, in any order, on up to `threads` threads; returns
// when all are done. The first exception is rethrown here. Bodies must not depend on the order:
// nothing of a result may depend on the number of threads.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

// Part `index` of `parts` nearly equal ones of [0, size), cut at multiples of `grain`.
std::pair<int64_t, int64_t> part_of_range(int64_t size, int index, int parts, int64_t grain = 1);

// Cores that this process may use (its affinity mask).
int available_cores();

}  // namespace smalltalk
