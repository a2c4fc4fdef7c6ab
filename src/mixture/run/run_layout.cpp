#include "smalltalk/mixture/run/run_layout.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/mixture/run/kinds.hpp"

namespace smalltalk {

namespace {

// "experts/2" as one file name.
std::string flat(std::string name) {
  std::replace(name.begin(), name.end(), '/', '-');
  return name;
}

}  // namespace

std::string router_name(int64_t e) { return first_kind(Role::router).unit(e); }

std::string expert_name(int64_t e) { return first_kind(Role::mixture).unit(e); }

std::filesystem::path RunLayout::round(int64_t round) const {
  return rounds_folder() / fmt::format("round-{:03}.h5", round);
}

std::filesystem::path RunLayout::round_record(int64_t round) const {
  return this->round(round).replace_extension(".json");
}

std::filesystem::path RunLayout::metrics(const std::string& unit) const {
  return metrics_file(model(unit));
}

std::filesystem::path RunLayout::scoring_notes(const std::string& work) const {
  return scoring_folder() / flat(work);
}

std::filesystem::path RunLayout::lock(const std::string& what) const {
  return root / "locks" / flat(what);
}

std::filesystem::path RunLayout::evaluation(const std::string& split,
                                            const std::string& cell) const {
  return evaluation_folder() / split / (flat(cell) + ".h5");
}

std::filesystem::path RunLayout::task_scores(const std::string& task,
                                             const std::string& model) const {
  return root / "tasks" / task / (flat(model) + ".json");
}

std::filesystem::path RunLayout::slurm_record(const std::string& stage, int64_t index) const {
  return root / "slurm" / fmt::format("{}-{}", stage, index);
}

std::filesystem::path RunLayout::queue(const std::string& start, const std::string& work) const {
  return root / "queue" / start / flat(work);
}

}  // namespace smalltalk
