#include "smalltalk/lm/model/model_folder.hpp"

#include "lm/model/checkpoint_name.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

fs::path config_file(const fs::path& folder) { return folder / "config.json"; }

fs::path weights_file(const fs::path& folder, int64_t step) {
  if (step == 0) return folder / "model.safetensors";
  return checkpoints_folder(folder) / checkpoint_name(step);
}

fs::path checkpoints_folder(const fs::path& folder) { return folder / "checkpoints"; }

fs::path metrics_file(const fs::path& folder) { return folder / "metrics.jsonl"; }

fs::path trace_file(const fs::path& folder) { return folder / "trace.json"; }

fs::path tensorboard_folder(const fs::path& folder) { return folder / "tensorboard"; }

bool is_log(const fs::path& path) {
  const fs::path folder = path.parent_path();
  return path == metrics_file(folder) || path == trace_file(folder) ||
         path == tensorboard_folder(folder);
}

}  // namespace smalltalk
