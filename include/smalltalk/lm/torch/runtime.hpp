// How this process computes, whatever it computes.
#pragma once

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// Compute threads of this process and allocator settings that keep freed memory (fresh pages are
// slow). Call once, before the first model.
void configure_runtime(const DeviceConfig& device, int local_rank);

// Of this process's GPU, all of it; 0 on a CPU. Call configure_runtime() first.
double device_memory_bytes(const DeviceConfig& device);

}  // namespace smalltalk
