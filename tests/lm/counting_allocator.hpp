// What LibTorch takes from the CPU's allocator.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>

namespace smalltalk {

// Counts the bytes of CPU tensors while it lives.
class CountingAllocator : public c10::Allocator {
 public:
  CountingAllocator() : before_(c10::GetCPUAllocator()) { c10::SetCPUAllocator(this, kPriority); }
  ~CountingAllocator() override { c10::SetCPUAllocator(before_, kPriority); }

  c10::DataPtr allocate(size_t bytes) override {
    bytes_ += bytes;
    for (size_t peak = peak_; bytes_ > peak && !peak_.compare_exchange_weak(peak, bytes_);) {
    }
    auto* block = new Block{before_->allocate(bytes), bytes};
    return {block->data.get(), block, &free_block, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  static double bytes() { return static_cast<double>(bytes_); }  // now
  static double peak_over_now(const std::function<void()>& work) {
    const size_t now = bytes_;
    peak_ = now;
    work();
    return static_cast<double>(peak_ - now);
  }

 private:
  static constexpr uint8_t kPriority = 1;
  struct Block {
    c10::DataPtr data;
    size_t bytes;
  };
  static void free_block(void* block) {
    bytes_ -= static_cast<Block*>(block)->bytes;
    delete static_cast<Block*>(block);
  }
  static inline std::atomic<size_t> bytes_ = 0, peak_ = 0;  // threads of a product free, too
  c10::Allocator* before_;
};

}  // namespace smalltalk
