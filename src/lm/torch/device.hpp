// The GPU. All that needs CUDA and NCCL (cuda_device.cpp, nccl_group.cpp and the .cu files) is a
// library of its own, libsmalltalk_cuda.so, which is loaded when a run first asks for a GPU: with
// LibTorch's CUDA half behind it, it takes 0.2 s and 235 MB that a rank on a CPU does without, and
// nodes that have no CUDA at all run the same program.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "lm/cpu/elementwise.hpp"
#include "lm/torch/loss_launch.hpp"

namespace smalltalk {

struct DeviceMemory {
  double peak_bytes = 0;
  double total_bytes = 0;
};

// Work of the device that is the same every time, recorded as one CUDA graph: memory and numbers
// are those of the recording, so all that changes must lie in tensors that stay where they are.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Does `work`, which must not wait for the device: the first time as it is (which warms up the
  // libraries), the second time while recording it, then by launching the graph. The current stream
  // waits for it.
  virtual void run(const std::function<void()>& work) = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  // This process computes on GPU local_rank modulo the number of GPUs.
  virtual void use(int local_rank) = 0;
  virtual DeviceMemory memory() = 0;

  // Sum of the squares and AdamW, as in elementwise.hpp, on device pointers and the current stream.
  virtual void adamw(float* parameters, const float* gradients, float* first, float* second,
                     int64_t size, const AdamStep& step) = 0;

  // As in loss_launch.hpp, on the current stream.
  virtual int64_t log_probs_scratch(const LossSizes& sizes) = 0;
  virtual void log_probs(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                         const int64_t* targets, float* scratch, float* log_sums, float* log_probs,
                         uint8_t* greedy) = 0;
  virtual void d_logits(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                        const int64_t* targets, const float* log_sums, float scale, int64_t begin,
                        int64_t width, uint16_t* d_logits) = 0;

  // What is recorded together shares memory: `before` (or nullptr) runs before this one every time.
  virtual std::unique_ptr<DeviceGraph> make_graph(const DeviceGraph* before) = 0;
};

// Error saying what to do if the library cannot be loaded.
Device& cuda_device();

// A function that the library exports, by its name: to be cast to the type of its declaration.
void* cuda_function(const char* name);

}  // namespace smalltalk

extern "C" smalltalk::Device* smalltalk_cuda_device();  // in the library
