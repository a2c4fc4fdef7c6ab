#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "adamw_launch.hpp"
#include "device.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {

void use_device(int local_rank) {
  const int count = c10::cuda::device_count();
  if (count == 0) throw Error("no GPU is visible: set device.device = \"cpu\", or ask for a GPU");
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(local_rank % count));
}

DeviceMemory device_memory() {
  const auto device = c10::cuda::current_device();
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device);
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  const auto peak = stats.active_bytes[0].peak;  // 0: all pools together
  return {static_cast<double>(peak), static_cast<double>(total_bytes)};
}

void device_adamw(float* parameters, const float* gradients, float* first, float* second,
                  int64_t size, const AdamStep& step) {
  launch_adamw(parameters, gradients, first, second, size, step,
               c10::cuda::getCurrentCUDAStream().stream());
}

}  // namespace smalltalk
