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

}  // namespace

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
  launch_adamw(parameters, gradients, first, second, size, step, current_stream());
  C10_CUDA_CHECK(cudaGetLastError());
}

int64_t device_log_probs_scratch(const LossSizes& sizes) { return log_probs_scratch(sizes); }

void device_log_probs(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                      const int64_t* targets, float* scratch, float* log_sums, float* log_probs) {
  launch_log_probs(sizes, hidden, head, targets, scratch, log_sums, log_probs, current_stream());
  C10_CUDA_CHECK(cudaGetLastError());
}

void device_d_logits(const LossSizes& sizes, const uint16_t* hidden, const uint16_t* head,
                     const int64_t* targets, const float* log_sums, float scale, int64_t begin,
                     int64_t width, uint16_t* d_logits) {
  launch_d_logits(sizes, hidden, head, targets, log_sums, scale, begin, width, d_logits,
                  current_stream());
  C10_CUDA_CHECK(cudaGetLastError());
}

struct DeviceGraph::Impl {
  Impl(c10::cuda::CUDAStream same_stream, c10::MempoolId_t same_memory)
      : stream(same_stream), memory(same_memory) {}

  c10::cuda::CUDAStream stream;
  c10::MempoolId_t memory;
  at::cuda::CUDAGraph graph;
  int runs = 0;
};

// Recording is refused on the default stream.
DeviceGraph::DeviceGraph(const DeviceGraph* before)
    : impl_(before == nullptr
                ? std::make_unique<Impl>(c10::cuda::getStreamFromPool(),
                                         at::cuda::graph_pool_handle())
                : std::make_unique<Impl>(before->impl_->stream, before->impl_->memory)) {}
DeviceGraph::~DeviceGraph() = default;

void DeviceGraph::run(const std::function<void()>& work) {
  const auto wait_for = [](const c10::cuda::CUDAStream& waits, const c10::cuda::CUDAStream& other) {
    at::cuda::CUDAEvent event;
    event.record(other);
    event.block(waits);
  };
  const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream();
  wait_for(impl_->stream, current);
  {
    const c10::cuda::CUDAStreamGuard guard(impl_->stream);
    if (impl_->runs == 1) {
      // Other threads (those of NCCL) may do what a recording thread may not.
      impl_->graph.capture_begin(impl_->memory, cudaStreamCaptureModeThreadLocal);
      work();
      impl_->graph.capture_end();
    }
    if (impl_->runs == 0) {
      work();
    } else {
      impl_->graph.replay();
    }
  }
  ++impl_->runs;
  wait_for(current, impl_->stream);
}

}  // namespace smalltalk
