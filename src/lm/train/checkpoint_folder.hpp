// The checkpoints of one model: MODEL/checkpoints/step-00000040.safetensors, and a link `latest` to
// the newest, which is set last.
#pragma once

#include <cstdint>
#include <filesystem>
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

  std::vector<int64_t> steps() const;  // that have a file, descending
  std::filesystem::path file(int64_t step) const;
  // The file of this step is whole: `latest` leads to it, and what is not kept goes, as do those of
  // later steps.
  void written(int64_t step) const;
  // Training is over: removes all but those that are kept for ever.
  void clear() const;

 private:
  void prune(int64_t keep_last) const;

  std::filesystem::path model_;
  Kept kept_;
};

}  // namespace smalltalk
