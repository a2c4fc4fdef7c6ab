#include "lm/train/checkpoint_folder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <string>
#include <utility>

#include "lm/model/checkpoint_name.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

CheckpointFolder::CheckpointFolder(fs::path folder, int64_t keep_last, int64_t keep_every)
    : folder_(std::move(folder)), keep_last_(keep_last), keep_every_(keep_every) {}

CheckpointFolder::~CheckpointFolder() {
  if (write_.valid()) write_.wait();
}

fs::path CheckpointFolder::file(int64_t step) const { return folder_ / checkpoint_name(step); }

std::vector<int64_t> CheckpointFolder::steps() const {
  std::vector<int64_t> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder_, none)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kCheckpointPrefix) || !name.ends_with(kCheckpointEnding)) continue;
    const char* end = name.data() + name.size() - kCheckpointEnding.size();
    int64_t step = 0;
    const auto [stop, error] = std::from_chars(name.data() + kCheckpointPrefix.size(), end, step);
    if (error == std::errc() && stop == end) found.push_back(step);
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

void CheckpointFolder::begin_write(int64_t step, std::function<void(const fs::path&)> write) {
  wait();
  write_ = std::async(std::launch::async, [this, step, write = std::move(write)] {
    const TraceSpan span("write checkpoint");
    write(file(step));
    publish_link(folder_ / "latest", file(step));
    prune(keep_last_);
  });
}

void CheckpointFolder::wait() {
  if (write_.valid()) write_.get();
}

void CheckpointFolder::check() {
  if (write_.valid() && write_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
    write_.get();
  }
}

void CheckpointFolder::prune(int64_t keep_last) const {
  const std::vector<int64_t> all = steps();
  for (size_t i = static_cast<size_t>(keep_last); i < all.size(); ++i) {
    if (keep_every_ == 0 || all[i] % keep_every_ != 0) fs::remove(file(all[i]));
  }
}

void CheckpointFolder::clear() {
  wait();
  prune(0);
  if (!steps().empty()) return;
  fs::remove_all(folder_);
}

}  // namespace smalltalk
