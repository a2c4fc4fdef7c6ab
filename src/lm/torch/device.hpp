// The GPU. All that needs CUDA and NCCL (cuda_device.cpp, nccl_group.cpp and the .cu files) is a
// library of its own, libsmalltalk_cuda.so, which is loaded when a run first asks for a GPU: with
// LibTorch's CUDA half behind it, it takes 0.2 s and 235 MB that a rank on a CPU does without, and
// nodes that have no CUDA at all run the same program. It cannot call functions of the program,
// only what headers have inline.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "lm/torch/block_launch.hpp"
#include "lm/torch/update_launch.hpp"
#include "smalltalk/core/system/error.hpp"

namespace at {
class Tensor;
}

namespace smalltalk {

struct DeviceMemory {
  double active_bytes = 0;    // in tensors now
  double peak_bytes = 0;      // the most of them since reset_peak_memory()
  double reserved_bytes = 0;  // taken from the device, for tensors now or before
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

  // This process, the local_rank-th of its machine, computes on gpu_of_rank(). Error as there.
  virtual void use(int local_rank) = 0;
  virtual DeviceMemory memory() = 0;
  virtual void reset_peak_memory() = 0;
  virtual std::string name() = 0;  // as the driver calls it, "NVIDIA H100 80GB HBM3"

  // A copy of `values` in the device's memory [n], int64, which are read before this returns: from
  // pinned memory, on a stream of its own, beside what the device computes. The current stream
  // waits for it.
  virtual at::Tensor upload(std::span<const int64_t> values) = 0;

  // To be launched on the current stream; after each launch check_launch() throws what CUDA says.
  virtual const BlockKernels& block_kernels() = 0;
  virtual const UpdateKernels& update_kernels() = 0;
  virtual CUstream_st* stream() = 0;
  virtual void check_launch() = 0;

  // What is recorded together shares memory: `before` (or nullptr) runs before this one every time.
  virtual std::unique_ptr<DeviceGraph> make_graph(const DeviceGraph* before) = 0;
};

// Which of `count` visible GPUs a rank of a machine takes: its own, or, where each process sees one
// GPU only, as under --gpus-per-task, that one. Error: there is none, or two ranks would share one,
// which NCCL refuses and memory is not made for.
inline int gpu_of_rank(int local_rank, int count) {
  if (count == 0) {
    throw Error("no GPU is visible: set device.device = \"cpu\", or ask for a GPU");
  }
  if (count == 1 || local_rank < count) return count == 1 ? 0 : local_rank;
  throw Error("rank " + std::to_string(local_rank) + " of this machine finds only " +
              std::to_string(count) + " GPUs: start at most one rank a GPU");
}

// Error saying what to do if the library cannot be loaded.
Device& cuda_device();

// A function that the library exports, by its name: to be cast to the type of its declaration.
void* cuda_function(const char* name);

}  // namespace smalltalk

extern "C" smalltalk::Device* smalltalk_cuda_device();  // in the library
