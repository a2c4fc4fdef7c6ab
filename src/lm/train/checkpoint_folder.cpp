#include "lm/train/checkpoint_folder.hpp"

#include <utility>

#include "lm/model/checkpoint_name.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/model/model_folder.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

CheckpointFolder::CheckpointFolder(fs::path model, Kept kept)
    : model_(std::move(model)), kept_(kept) {}

fs::path CheckpointFolder::file(int64_t step) const {
  return checkpoints_folder(model_) / checkpoint_name(step);
}

std::vector<int64_t> CheckpointFolder::steps() const { return checkpoint_steps(model_); }

void CheckpointFolder::written(int64_t step) const {
  publish_link(checkpoints_folder(model_) / "latest", file(step));
  // What lies beyond is damaged, or of another schedule.
  for (const int64_t other : steps()) {
    if (other > step) fs::remove(file(other));
  }
  prune(kept_.last);
}

void CheckpointFolder::prune(int64_t keep_last) const {
  const std::vector<int64_t> all = steps();
  for (size_t i = static_cast<size_t>(keep_last); i < all.size(); ++i) {
    const bool for_ever = kept_.every > 0 && all[i] % kept_.every == 0;
    if (!for_ever && all[i] != kept_.step) fs::remove(file(all[i]));
  }
}

void CheckpointFolder::clear() const {
  prune(0);
  if (!steps().empty()) return;
  fs::remove_all(checkpoints_folder(model_));
}

}  // namespace smalltalk
