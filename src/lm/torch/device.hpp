// What needs the CUDA runtime: cuda_device.cpp and the .cu files where it is built with CUDA,
// no_cuda_device.cpp, which throws, where it is not.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "lm/cpu/elementwise.hpp"
#include "lm/torch/loss_launch.hpp"

namespace smalltalk {

// This process computes on GPU local_rank modulo the number of GPUs.
void use_device(int local_rank);

struct DeviceMemory {
  double peak_bytes = 0;
  double total_bytes = 0;
};
DeviceMemory device_memory();

// sum of the squares and AdamW, as in elementwise.hpp, on device pointers and the current stream.
void device_adamw(float* parameters, const float* gradients, float* first, float* second,
                  int64_t size, const AdamStep& step);

// As in loss_launch.hpp, on the current stream.
int64_t device_log_probs_scratch(const LossSizes& sizes);
void device_log_probs(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                      const int64_t* targets, float* scratch, float* log_sums, float* log_probs);
void device_d_logits(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                     const int64_t* targets, const float* log_sums, float scale, int64_t begin,
                     int64_t width, uint16_t* d_logits);

// Work of the device that is the same every time, recorded as one CUDA graph: memory and numbers
// are those of the recording, so all that changes must lie in tensors that stay where they are.
class DeviceGraph {
 public:
  // What is recorded together shares memory: `before` runs before this one every time.
  explicit DeviceGraph(const DeviceGraph* before = nullptr);
  ~DeviceGraph();
  // Does `work`, which must not wait for the device: the first time as it is (which warms up the
  // libraries), the second time while recording it, then by launching the graph. The current stream
  // waits for it.
  void run(const std::function<void()>& work);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
