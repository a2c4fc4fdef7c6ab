#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "lm/torch/adamw_launch.hpp"
#include "lm/torch/device.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

CUstream_st* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

class CudaGraph final : public DeviceGraph {
 public:
  // Recording is refused on the default stream.
  explicit CudaGraph(const CudaGraph* before)
      : stream_(before ? before->stream_ : c10::cuda::getStreamFromPool()),
        memory_(before ? before->memory_ : at::cuda::graph_pool_handle()) {}

  void run(const std::function<void()>& work) override;

 private:
  c10::cuda::CUDAStream stream_;
  c10::MempoolId_t memory_;
  at::cuda::CUDAGraph graph_;
  int runs_ = 0;
};

void CudaGraph::run(const std::function<void()>& work) {
  const auto wait_for = [](const c10::cuda::CUDAStream& waits, const c10::cuda::CUDAStream& other) {
    at::cuda::CUDAEvent event;
    event.record(other);
    event.block(waits);
  };
  const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream();
  wait_for(stream_, current);
  {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    if (runs_ == 1) {
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
    if (count == 0) throw Error("no GPU is visible: set device.device = \"cpu\", or ask for a GPU");
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(local_rank % count));
  }

  DeviceMemory memory() override {
    const auto device = c10::cuda::current_device();
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device);
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    const auto peak = stats.active_bytes[0].peak;  // 0: all pools together
    return {static_cast<double>(peak), static_cast<double>(total_bytes)};
  }

  void adamw(float* parameters, const float* gradients, float* first, float* second, int64_t size,
             const AdamStep& step) override {
    launch_adamw(parameters, gradients, first, second, size, step, current_stream());
    C10_CUDA_CHECK(cudaGetLastError());
  }

  int64_t log_probs_scratch(const LossSizes& sizes) override {
    return smalltalk::log_probs_scratch(sizes);
  }

  void log_probs(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                 const int64_t* targets, float* scratch, float* log_sums, float* log_probs,
                 uint8_t* greedy) override {
    launch_log_probs(sizes, hidden, head, targets, scratch, log_sums, log_probs, greedy,
                     current_stream());
    C10_CUDA_CHECK(cudaGetLastError());
  }

  void d_logits(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                const int64_t* targets, const float* log_sums, float scale, int64_t begin,
                int64_t width, uint16_t* d_logits) override {
    launch_d_logits(sizes, hidden, head, targets, log_sums, scale, begin, width, d_logits,
                    current_stream());
    C10_CUDA_CHECK(cudaGetLastError());
  }

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
