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

void require_mixture(const Run& run) {
  if (run.experiment.has_mixture()) return;
  throw Error(fmt::format("{}: mixture.experts = 0, so there are neither routers nor experts",
                          run.layout.root.string()));
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
