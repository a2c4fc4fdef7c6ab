// A c10d backend over HostCollectives: what ProcessGroupNCCL is on GPUs, this is on the CPU, so
// that the optimiser knows one interface. A thread of its own runs the blocking collectives one
// after another in the order of the calls, while the caller goes on to compute. Tensors in host
// memory, of float32 where they are summed.
#pragma once

#include <ATen/core/Tensor.h>

#include <thread>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// Every call returns at once; wait() of what it returns throws what the collective threw. After a
// failure the ranks are no longer in step, so all later collectives fail with it too.
// Until all calls are waited for, nobody else may use the same collectives.
class HostBackend : public c10d::Backend {
 public:
  explicit HostBackend(HostCollectives collectives);
  // Collectives still under way mean that this rank is failing and that its peers may never join
  // in. They are left behind: joining their thread could take for ever.
  ~HostBackend() override;

  const std::string getBackendName() const override { return "smalltalk-host"; }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override;
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(
      at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override;

 private:
  struct Queue;
  c10::intrusive_ptr<c10d::Work> enqueue(c10d::OpType type,
                                         std::function<void(const HostCollectives&)> run);

  std::shared_ptr<Queue> queue_;  // shared with the thread, which may outlive this object
  std::thread thread_;
};

}  // namespace smalltalk
