#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "lm/torch/device.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

CUstream_st* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void wait_for(const c10::cuda::CUDAStream& waits, const c10::cuda::CUDAStream& other) {
  at::cuda::CUDAEvent event;
  event.record(other);
  event.block(waits);
}

class CudaGraph final : public DeviceGraph {
 public:
  // Recording is refused on the default stream. All graphs are recorded on one other: what the
  // allocator has kept for a stream serves no other.
  explicit CudaGraph(const CudaGraph* before)
      : stream_(recording_stream()),
        memory_(before ? before->memory_ : at::cuda::graph_pool_handle()) {}

  void run(const std::function<void()>& work) override;

 private:
  static const c10::cuda::CUDAStream& recording_stream() {
    static const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool();
    return stream;
  }

  c10::cuda::CUDAStream stream_;
  c10::MempoolId_t memory_;
  at::cuda::CUDAGraph graph_;
  int runs_ = 0;
};

void CudaGraph::run(const std::function<void()>& work) {
  const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream();
  wait_for(stream_, current);
  {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    if (runs_ == 1) {
      // The first run's memory is free again, but a graph has memory of its own: without this the
      // device would hold both.
      stream_.synchronize();
      c10::cuda::CUDACachingAllocator::emptyCache();
      // Other threads (those of NCCL) may do what a recording thread may not.
      graph_.capture_begin(memory_, cudaStreamCaptureModeThreadLocal);
      work();
      graph_.capture_end();
    }
    if (runs_ == 0) {
      work();
    } else {
      graph_.replay();
    }
  }
  ++runs_;
  wait_for(current, stream_);
}

class CudaDevice final : public Device {
 public:
  void use(int local_rank) override {
    const int count = c10::cuda::device_count();
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(gpu_of_rank(local_rank, count)));
  }

  DeviceMemory memory() override {
    const auto device = c10::cuda::current_device();
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device);
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    // 0: all pools together
    const auto active = stats.active_bytes[0];
    return {static_cast<double>(active.current), static_cast<double>(active.peak),
            static_cast<double>(stats.reserved_bytes[0].current), static_cast<double>(total_bytes)};
  }

  void reset_peak_memory() override {
    c10::cuda::CUDACachingAllocator::resetPeakStats(c10::cuda::current_device());
  }

  std::string name() override {
    return at::cuda::getDeviceProperties(c10::cuda::current_device())->name;
  }

  at::Tensor upload(std::span<const int64_t> values) override {
    static const c10::cuda::CUDAStream copying = c10::cuda::getStreamFromPool();
    const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream();
    const auto size = static_cast<int64_t>(values.size());
    const auto options = at::TensorOptions().dtype(at::kLong);
    const at::Tensor pinned = at::empty({size}, options.pinned_memory(true));
    std::memcpy(pinned.mutable_data_ptr<int64_t>(), values.data(), values.size_bytes());
    at::Tensor result;
    {
      const c10::cuda::CUDAStreamGuard guard(copying);
      result = at::empty({size}, options.device(at::kCUDA, copying.device_index()));
      result.copy_(pinned, /*non_blocking=*/true);
    }
    wait_for(current, copying);
    // The allocators take either memory back only when it is out of use on both streams.
    result.record_stream(current.unwrap());
    return result;
  }

  const BlockKernels& block_kernels() override { return cuda_block_kernels(); }
  const UpdateKernels& update_kernels() override { return cuda_update_kernels(); }
  CUstream_st* stream() override { return current_stream(); }
  void check_launch() override { C10_CUDA_CHECK(cudaGetLastError()); }

  std::unique_ptr<DeviceGraph> make_graph(const DeviceGraph* before) override {
    return std::make_unique<CudaGraph>(static_cast<const CudaGraph*>(before));
  }
};

}  // namespace
}  // namespace smalltalk

extern "C" smalltalk::Device* smalltalk_cuda_device() {
  static smalltalk::CudaDevice device;
  return &device;
}
