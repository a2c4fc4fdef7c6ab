#include "smalltalk/lm/torch/runtime.hpp"

#include <ATen/Parallel.h>
#include <malloc.h>

#include "lm/torch/device.hpp"

namespace smalltalk {

void configure_runtime(const DeviceConfig& device, int local_rank) {
  // By default glibc gives large blocks back to the system when they are freed, and the next one
  // comes as zeroed pages, a fault each: measured, a third of the time of a small training step.
  constexpr int kKeep = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kKeep);
  mallopt(M_TRIM_THRESHOLD, kKeep);
  mallopt(M_TOP_PAD, 64 << 20);
  // CpuEngine runs threads of its own, each with single-threaded products.
  at::set_num_threads(1);
  if (device.device == "cuda") cuda_device().use(local_rank);
}

double device_memory_bytes(const DeviceConfig& device) {
  return device.device == "cuda" ? cuda_device().memory().total_bytes : 0;
}

}  // namespace smalltalk
