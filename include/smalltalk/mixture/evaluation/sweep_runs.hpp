// The runs of a sweep: for each [[run]] and each of its seeds a run folder, and what must be in it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/sweep.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

struct PlannedRun {
  std::string name;                    // of its [[run]]
  std::vector<std::string> overrides;  // of the sweep's experiment; the seed is one of them
  Run run;                             // its tokens are not open
  std::vector<TrainUnit> units;
  double cost = 0;  // FLOPs of all training, roughly
  Sweep::Needs needs;

  std::string folder() const { return run.layout.root.filename().string(); }  // NAME-seed-SEED
  // Models, evaluations and comparisons are all there. What was asked for later makes it
  // incomplete again.
  bool complete() const;
};

// In the order of the file. How long dense models train follows from the text, so that before there
// are tokens their units are a guess. Error, which names the run: its experiment is not valid, or
// `check` throws one.
std::vector<PlannedRun> plan_runs(const Sweep& sweep, const SweepLayout& layout,
                                  const std::function<void(const Run&)>& check);

// Error naming a step that a table shows and that training will not keep.
void require_steps(const PlannedRun& planned);

}  // namespace smalltalk
