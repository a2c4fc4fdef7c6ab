#include "smalltalk/mixture/run/run.hpp"

#include <fmt/format.h>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

Run load_run(const fs::path& experiment, const std::vector<std::string>& overrides,
             const fs::path& folder) {
  Run run;
  run.experiment = load_experiment(experiment, overrides);
  run.layout.root = folder;
  return run;
}

Run open_run(const fs::path& folder) {
  return load_run(RunLayout{folder}.experiment(), {}, folder);
}

void require_same_experiment(const Run& run) {
  const fs::path file = run.layout.experiment();
  // A start that failed before it computed anything leaves nothing to protect.
  if (!fs::exists(file) || !fs::exists(run.layout.tokenizer())) return;
  if (experiment_hash(load_experiment(file, {})) != experiment_hash(run.experiment)) {
    throw Error(
        fmt::format("{} holds another experiment (see its experiment.toml): choose "
                    "another run folder, or delete that one",
                    run.layout.root.string()));
  }
}

void claim_run_folder(const Run& run, const HostCollectives& ranks) {
  require_writable(run.layout.root);
  require_same_experiment(run);
  ranks.barrier();  // everyone has looked before anyone writes
  if (ranks.rank != 0) return;
  remove_stale_temporaries(run.layout.root);
  write_text_atomically(run.layout.experiment(), to_toml(run.experiment));
}

std::unique_ptr<WriteLock> lock_stages(const Run& run, const HostCollectives& ranks,
                                       double patience_seconds) {
  std::unique_ptr<WriteLock> lock;
  run_together(ranks, [&] {
    if (ranks.rank != 0) return;
    lock = std::make_unique<WriteLock>(run.layout.lock("stages"), run.layout.root.string(),
                                       patience_seconds);
  });
  return lock;
}

}  // namespace smalltalk
