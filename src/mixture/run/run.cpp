#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

Run open_run(const std::filesystem::path& folder) {
  Run run;
  run.layout.root = folder;
  run.experiment = load_experiment(run.layout.experiment(), {});
  return run;
}

}  // namespace smalltalk
