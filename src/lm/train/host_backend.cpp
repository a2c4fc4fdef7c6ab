#include "lm/train/host_backend.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {
namespace {

class HostWork : public c10d::Work {
 public:
  HostWork(int rank, c10d::OpType type) : Work(rank, type) {}
  using Work::finish;
};

std::span<float> floats(const at::Tensor& tensor) {
  ST_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == at::kFloat);
  return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

// What is only moved may be of any type, as long as it fills floats.
std::span<float> as_floats(const at::Tensor& tensor) {
  ST_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.nbytes() % sizeof(float) == 0);
  return {static_cast<float*>(tensor.data_ptr()), tensor.nbytes() / sizeof(float)};
}

void require_sum(const c10d::ReduceOp& op) {
  if (op != c10d::ReduceOp::SUM) throw Error("the host backend can only sum");
}

}  // namespace

struct HostBackend::Queue {
  struct Job {
    std::function<void(const HostCollectives&)> run;
    c10::intrusive_ptr<HostWork> work;
  };

  HostCollectives collectives;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Job> jobs;  // the first one is under way
  bool stopped = false;

  void serve() {
    std::exception_ptr failure;
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return stopped || !jobs.empty(); });
      if (stopped) return;
      const Job job = jobs.front();
      lock.unlock();
      if (!failure) {
        try {
          job.run(collectives);
        } catch (...) {
          failure = std::current_exception();
        }
      }
      lock.lock();
      jobs.pop_front();
      job.work->finish(failure);
    }
  }
};

HostBackend::HostBackend(HostCollectives collectives)
    : Backend(collectives.rank, collectives.size), queue_(std::make_shared<Queue>()) {
  queue_->collectives = std::move(collectives);
  thread_ = std::thread([queue = queue_] { queue->serve(); });
}

HostBackend::~HostBackend() {
  bool idle = false;
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->stopped = true;
    idle = queue_->jobs.empty();
    queue_->changed.notify_one();
  }
  if (idle) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

c10::intrusive_ptr<c10d::Work> HostBackend::enqueue(
    c10d::OpType type, std::function<void(const HostCollectives&)> run) {
  auto work = c10::make_intrusive<HostWork>(rank_, type);
  const std::lock_guard lock(queue_->mutex);
  queue_->jobs.push_back({std::move(run), work});
  queue_->changed.notify_one();
  return work;
}

// The lambdas keep tensors, not spans: memory lives as long as somebody may write it.

c10::intrusive_ptr<c10d::Work> HostBackend::allreduce(std::vector<at::Tensor>& tensors,
                                                      const c10d::AllreduceOptions& options) {
  require_sum(options.reduceOp);
  for (const at::Tensor& tensor : tensors) floats(tensor);
  return enqueue(c10d::OpType::ALLREDUCE, [tensors](const HostCollectives& host) {
    const TraceSpan span("all-reduce");
    for (const at::Tensor& tensor : tensors) host.all_reduce_sum(floats(tensor));
  });
}

c10::intrusive_ptr<c10d::Work> HostBackend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                                            const c10d::AllgatherOptions&) {
  ST_CHECK(as_floats(output).size() == as_floats(input).size() * static_cast<size_t>(size_));
  return enqueue(c10d::OpType::_ALLGATHER_BASE, [output, input](const HostCollectives& host) {
    const TraceSpan span("all-gather");
    host.all_gather(as_floats(input), as_floats(output));
  });
}

c10::intrusive_ptr<c10d::Work> HostBackend::_reduce_scatter_base(
    at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) {
  require_sum(options.reduceOp);
  ST_CHECK(floats(input).size() == floats(output).size() * static_cast<size_t>(size_));
  return enqueue(c10d::OpType::_REDUCE_SCATTER_BASE, [output, input](const HostCollectives& host) {
    const TraceSpan span("reduce-scatter");
    host.reduce_scatter_sum(floats(input), floats(output));
  });
}

}  // namespace smalltalk
