// Work of one process on its cores.
#pragma once

#include <cstdint>
#include <functional>

namespace smalltalk {

// Calls body(0) .. body(count - 1), each once, in any order, on up to `threads` threads; returns
// when all are done. The first exception is rethrown here. Bodies must not depend on the order:
// nothing of a result may depend on the number of threads.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

// Cores that this process may use (its affinity mask).
int available_cores();

}  // namespace smalltalk
