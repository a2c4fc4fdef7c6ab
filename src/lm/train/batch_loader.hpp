// Reads the micro-batches of a training run ahead of the loop, on a thread of its own, so that the
// loop does not wait for files.
#pragma once

#include <array>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "smalltalk/core/system/batch.hpp"

namespace smalltalk {

// Which rows one rank trains on, and in which portions.
struct LoadPlan {
  int64_t batch_size = 0;  // rows of a step, over the group
  int64_t rank = 0, ranks = 1;
  int64_t micro_batch = 0;  // rows; divides batch_size / ranks
  int64_t first_step = 0, last_step = 0;
};

class BatchLoader {
 public:
  // Reads rows from now on, in the order of the plan and none outside it.
  BatchLoader(RowSource rows, int64_t vocab_size, const LoadPlan& plan);
  ~BatchLoader();  // waits for the read that is under way
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  // The next micro-batch [micro_batch, row_tokens], ids checked; valid until the next call. Throws
  // what reading it threw. REQUIRES that the plan is not at its end.
  std::span<const int64_t> next();

 private:
  void read_all(const std::stop_token& stop);

  RowSource rows_;
  int64_t vocab_size_;
  LoadPlan plan_;
  std::mutex mutex_;  // of the counts and the error
  std::condition_variable_any changed_;
  int64_t num_read_ = 0;   // micro-batches
  int64_t num_taken_ = 0;  // by next(); the last of them is in use
  std::exception_ptr error_;
  std::array<std::vector<int64_t>, 3> ring_;  // one in use, two ahead
  std::jthread thread_;                       // last: it works on all of the above
};

}  // namespace smalltalk
