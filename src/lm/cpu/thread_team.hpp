// The compute threads of one process: started once, asleep between calls.
#pragma once

#include <barrier>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace smalltalk {

class ThreadTeam {
 public:
  // `size` threads including the caller's.
  explicit ThreadTeam(int size);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;

  int size() const { return size_; }
  // Calls work(0) .. work(size - 1) at once, work(0) on the calling thread; returns when all are
  // done. The first exception is rethrown. Not reentrant.
  void run(const std::function<void(int)>& work);
  // Inside run(): waits until every thread has come here. One that has failed counts as there.
  void wait();

 private:
  void work_on(int index);

  int size_;
  std::barrier<> begin_, end_;
  std::optional<std::barrier<>> inner_;
  const std::function<void(int)>* work_ = nullptr;  // null: time to leave
  std::mutex mutex_;
  std::exception_ptr failure_;
  std::vector<std::jthread> threads_;
};

}  // namespace smalltalk
