// The checkpoints of one model: MODEL/checkpoints/step-00000040.safetensors, and a link `latest` to
// the newest, which is set last. Written on a thread of its own, one at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <vector>

namespace smalltalk {

class CheckpointFolder {
 public:
  struct Kept {
    int64_t last = 1;   // the newest, 1 at least
    int64_t every = 0;  // and for ever those of steps that are multiples of it; 0: none
    int64_t step = 0;   // and that of this step
  };
  CheckpointFolder(std::filesystem::path model, Kept kept);
  ~CheckpointFolder();  // waits for the write under way; its error is lost
  CheckpointFolder(const CheckpointFolder&) = delete;

  // Calls write(file) on a thread of its own, then removes what is not kept, and those of later
  // steps. Waits first for the write before this one. Error: what that one threw.
  void begin_write(int64_t step, std::function<void(const std::filesystem::path&)> write);
  // Waits until nothing is under way. Error: what the write threw.
  void wait();
  // Does not wait. Error: what a write threw that has come to its end.
  void check();
  std::vector<int64_t> steps() const;  // that have a file, descending
  std::filesystem::path file(int64_t step) const;
  // Training is over: removes all but those that are kept for ever.
  void clear();

 private:
  void prune(int64_t keep_last) const;

  std::filesystem::path model_;
  Kept kept_;
  std::future<void> write_;
};

}  // namespace smalltalk
