#include "host_backend.hpp"

#include "smalltalk/core/error.hpp"

namespace smalltalk {
namespace {

// The collectives block, so a Work is finished when it is made.
class FinishedWork : public c10d::Work {
 public:
  FinishedWork(int rank, c10d::OpType type, std::vector<at::Tensor> outputs)
      : Work(rank, type), outputs_(std::move(outputs)) {
    finish();
  }
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    auto future =
        c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    future->markCompleted(c10::IValue(outputs_));
    return future;
  }

 private:
  std::vector<at::Tensor> outputs_;
};

std::span<float> floats(const at::Tensor& tensor) {
  ST_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == at::kFloat);
  return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

void require_sum(const c10d::ReduceOp& op) {
  if (op != c10d::ReduceOp::SUM) throw Error("the host backend can only sum");
}

}  // namespace

HostBackend::HostBackend(HostCollectives collectives)
    : Backend(collectives.rank, collectives.size), collectives_(std::move(collectives)) {}

c10::intrusive_ptr<c10d::Work> HostBackend::allreduce(std::vector<at::Tensor>& tensors,
                                                      const c10d::AllreduceOptions& options) {
  require_sum(options.reduceOp);
  for (const at::Tensor& tensor : tensors) collectives_.all_reduce_sum(floats(tensor));
  return c10::make_intrusive<FinishedWork>(rank_, c10d::OpType::ALLREDUCE, tensors);
}

c10::intrusive_ptr<c10d::Work> HostBackend::broadcast(std::vector<at::Tensor>& tensors,
                                                      const c10d::BroadcastOptions& options) {
  for (const at::Tensor& tensor : tensors) {
    collectives_.broadcast(std::as_writable_bytes(floats(tensor)),
                           static_cast<int>(options.rootRank));
  }
  return c10::make_intrusive<FinishedWork>(rank_, c10d::OpType::BROADCAST, tensors);
}

c10::intrusive_ptr<c10d::Work> HostBackend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                                            const c10d::AllgatherOptions&) {
  collectives_.all_gather(floats(input), floats(output));
  return c10::make_intrusive<FinishedWork>(rank_, c10d::OpType::_ALLGATHER_BASE,
                                           std::vector<at::Tensor>{output});
}

c10::intrusive_ptr<c10d::Work> HostBackend::_reduce_scatter_base(
    at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) {
  require_sum(options.reduceOp);
  collectives_.reduce_scatter_sum(floats(input), floats(output));
  return c10::make_intrusive<FinishedWork>(rank_, c10d::OpType::_REDUCE_SCATTER_BASE,
                                           std::vector<at::Tensor>{output});
}

c10::intrusive_ptr<c10d::Work> HostBackend::barrier(const c10d::BarrierOptions&) {
  collectives_.barrier();
  return c10::make_intrusive<FinishedWork>(rank_, c10d::OpType::BARRIER, std::vector<at::Tensor>{});
}

}  // namespace smalltalk
