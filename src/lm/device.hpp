// What needs the CUDA runtime: cuda_device.cpp and adamw.cu where it is built with CUDA,
// no_cuda_device.cpp, which throws, where it is not.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace smalltalk {

// This process computes on GPU local_rank modulo the number of GPUs.
void use_device(int local_rank);

struct DeviceMemory {
  double peak_bytes = 0;
  double total_bytes = 0;
};
DeviceMemory device_memory();

// sum of the squares and AdamW, as in kernels.hpp, on device pointers and the current stream.
void device_adamw(float* parameters, const float* gradients, float* first, float* second,
                  int64_t size, const AdamStep& step);

}  // namespace smalltalk
