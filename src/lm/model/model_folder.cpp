#include "smalltalk/lm/model/model_folder.hpp"

#include <algorithm>
#include <charconv>
#include <functional>

#include "lm/model/checkpoint_name.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

fs::path config_file(const fs::path& folder) { return folder / "config.json"; }

fs::path weights_file(const fs::path& folder, int64_t step) {
  if (step == 0) return folder / "model.safetensors";
  return checkpoints_folder(folder) / checkpoint_name(step);
}

fs::path checkpoints_folder(const fs::path& folder) { return folder / "checkpoints"; }

std::vector<int64_t> checkpoint_steps(const fs::path& folder) {
  std::vector<int64_t> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(checkpoints_folder(folder), none)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kCheckpointPrefix) || !name.ends_with(kCheckpointEnding)) continue;
    const char* end = name.data() + name.size() - kCheckpointEnding.size();
    int64_t step = 0;
    const auto [stop, error] = std::from_chars(name.data() + kCheckpointPrefix.size(), end, step);
    if (error == std::errc() && stop == end) found.push_back(step);
  }
  std::ranges::sort(found, std::greater());
  return found;
}

fs::path metrics_file(const fs::path& folder) { return folder / "metrics.jsonl"; }

fs::path trace_file(const fs::path& folder) { return folder / "trace.json"; }

fs::path tensorboard_folder(const fs::path& folder) { return folder / "tensorboard"; }

bool is_log(const fs::path& path) {
  const fs::path folder = path.parent_path();
  return path == metrics_file(folder) || path == trace_file(folder) ||
         path == tensorboard_folder(folder);
}

}  // namespace smalltalk
