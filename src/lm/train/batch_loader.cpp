#include "lm/train/batch_loader.hpp"

#include "lm/model/check_tokens.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {

BatchLoader::BatchLoader(RowSource rows, int64_t vocab_size, const LoadPlan& plan)
    : rows_(std::move(rows)), vocab_size_(vocab_size), plan_(plan) {
  for (auto& buffer : ring_) {
    buffer.resize(static_cast<size_t>(plan_.micro_batch * rows_.row_tokens));
  }
  thread_ = std::jthread([this](const std::stop_token& stop) {
    try {
      read_all(stop);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    changed_.notify_all();
  });
}

BatchLoader::~BatchLoader() = default;  // the thread is asked to stop, and joined

void BatchLoader::read_all(const std::stop_token& stop) {
  const int64_t share = plan_.batch_size / plan_.ranks;
  for (int64_t step = plan_.first_step; step < plan_.last_step; ++step) {
    const int64_t first = step * plan_.batch_size + plan_.rank * share;
    for (int64_t done = 0; done < share; done += plan_.micro_batch) {
      const auto ring_size = static_cast<int64_t>(ring_.size());
      {
        std::unique_lock lock(mutex_);
        // The buffer of the batch before this one by the size of the ring must be out of use.
        const auto free = [&] { return num_read_ - num_taken_ < ring_size - 1; };
        if (!changed_.wait(lock, stop, free)) return;
      }
      auto& buffer = ring_[static_cast<size_t>(num_read_ % ring_size)];
      {
        const TraceSpan span("read tokens");
        rows_.read(first + done, plan_.micro_batch, buffer);
        check_tokens(buffer, plan_.micro_batch, rows_.row_tokens, vocab_size_);
      }
      const std::lock_guard lock(mutex_);
      ++num_read_;
      changed_.notify_all();
    }
  }
}

std::span<const int64_t> BatchLoader::next() {
  const int64_t per_step = plan_.batch_size / plan_.ranks / plan_.micro_batch;
  ST_CHECK(num_taken_ < (plan_.last_step - plan_.first_step) * per_step);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return num_read_ > num_taken_ || error_; });
  // What was read before the error is still good.
  if (num_read_ == num_taken_) std::rethrow_exception(error_);
  const auto& buffer = ring_[static_cast<size_t>(num_taken_) % ring_.size()];
  ++num_taken_;
  lock.unlock();  // before the thread wakes up and wants it
  changed_.notify_all();
  return buffer;
}

}  // namespace smalltalk
