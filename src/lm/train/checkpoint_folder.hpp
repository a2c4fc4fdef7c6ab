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
  // Keeps the newest `keep_last` (1 at least) and, for ever, those of steps that are multiples of
  // `keep_every` (0: none).
  CheckpointFolder(std::filesystem::path folder, int64_t keep_last, int64_t keep_every);
  ~CheckpointFolder();  // waits for the write under way; its error is lost
  CheckpointFolder(const CheckpointFolder&) = delete;

  // Calls write(file) on a thread of its own, then removes what is not kept. Waits first for the
  // write before this one. Error: what that one threw.
  void begin_write(int64_t step, std::function<void(const std::filesystem::path&)> write);
  // Waits until nothing is under way. Error: what the write threw.
  void wait();
  // Does not wait. Error: what a write threw that has come to its end.
  void check();
  // The steps that have a file, descending. Whether a file is whole shows when it is read.
  std::vector<int64_t> steps() const;
  std::filesystem::path file(int64_t step) const;
  // Training is over: removes all but those that are kept for ever.
  void clear();

 private:
  void prune(int64_t keep_last) const;

  std::filesystem::path folder_;
  int64_t keep_last_, keep_every_;
  std::future<void> write_;
};

}  // namespace smalltalk
