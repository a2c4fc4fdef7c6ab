#include "lm/cpu/thread_team.hpp"

#include <utility>

#include "lm/cpu/blas.hpp"

namespace smalltalk {

ThreadTeam::ThreadTeam(int size) : size_(size), begin_(size), end_(size), inner_(size) {
  for (int i = 1; i < size; ++i) {
    threads_.emplace_back([this, i] {
      use_one_blas_thread();
      while (true) {
        begin_.arrive_and_wait();
        if (work_ == nullptr) return;
        work_on(i);
        end_.arrive_and_wait();
      }
    });
  }
}

ThreadTeam::~ThreadTeam() {
  work_ = nullptr;
  if (size_ > 1) begin_.arrive_and_wait();
}

void ThreadTeam::work_on(int index) {
  try {
    (*work_)(index);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
    inner_->arrive_and_drop();  // the others must not wait for this one
  }
}

void ThreadTeam::run(const std::function<void(int)>& work) {
  if (size_ == 1) return work(0);
  work_ = &work;
  begin_.arrive_and_wait();
  work_on(0);
  end_.arrive_and_wait();
  if (failure_) {
    inner_.emplace(size_);
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

void ThreadTeam::wait() {
  if (size_ > 1) inner_->arrive_and_wait();
}

}  // namespace smalltalk
