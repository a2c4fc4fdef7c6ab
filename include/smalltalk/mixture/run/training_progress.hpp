// How far the training of a run's models has come, read from their logs. Lets nothing that it
// cannot read stop it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

struct UnitProgress {
  std::optional<int64_t> step, steps;
  std::optional<double> loss, tokens_per_second, device_hours_left;
};

// By the names of the units. A unit of 0 steps counts as one of an unknown number. Models that have
// not begun are expected to be as fast as those that have, on the mean.
std::map<std::string, UnitProgress> training_progress(const Run& run,
                                                      const std::vector<TrainUnit>& units);
// Of all of them; nothing if one of them is not known.
std::optional<double> hours_left(const std::map<std::string, UnitProgress>& models);

// The last round of the EM that the log knows; 0 before the first.
int64_t last_round(const RunLayout& layout);

}  // namespace smalltalk
