// A c10d backend over HostCollectives: what ProcessGroupNCCL is on GPUs, this is on the CPU, so
// that the optimiser knows one interface. Blocking; float32 tensors in host memory.
#pragma once

#include <ATen/ATen.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "smalltalk/core/collectives.hpp"

namespace smalltalk {

class HostBackend : public c10d::Backend {
 public:
  explicit HostBackend(HostCollectives collectives);

  const std::string getBackendName() const override { return "smalltalk-host"; }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override;
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(
      at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override;
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override;

 private:
  HostCollectives collectives_;
};

}  // namespace smalltalk
