// The pieces of an evaluation, as names: the log-likelihoods of one model on one split, or how it
// weighs its experts there, in a file.
// mixture/evaluation/evaluation.hpp computes and reads them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run_layout.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

struct EvalCell {
  std::string split;  // whose tokens: "validation", "test" or the name of other text
  // A model's folder below the run, "routers/3" included; or "routers": the scores of all, by which
  // the mixture routes.
  std::string unit;
  int64_t step = 0;  // of one of its checkpoints; 0: the trained model
  // How a Lory model's experts are merged: empty, as far as is known; kLeaky; kByFirstSegment. Or
  // kRouting: not what comes of that, but the weights that they are merged with.
  std::string merging = {};

  std::string model() const;  // unit and step
  std::string name() const;   // that of the cell, all in one
  std::filesystem::path file(const RunLayout& layout) const;
  bool of_all_routers() const;
  bool of_routers() const;  // of all, or of one
};

inline constexpr const char* kLeaky = "leaky";  // first segments by their own mean, as in training
inline constexpr const char* kByFirstSegment = "first-segment";  // which decides for all of a row
inline constexpr const char* kRouting = "routing";  // mixture/evaluation/lory_routing.hpp

// The scores of all routers on a split.
EvalCell routing_cell(const std::string& split);

// All cells of a run: each unit and the routers on both splits, and on the test split
// merging_cells() and the routing of Lory models.
std::vector<EvalCell> eval_cells(const std::vector<TrainUnit>& units);
// Of Lory models, merged otherwise.
std::vector<EvalCell> merging_cells(const std::vector<TrainUnit>& units, const std::string& split);
// Each router as a model of its own, which a run's results do without.
std::vector<EvalCell> router_cells(const std::string& split, int64_t num_experts);

}  // namespace smalltalk
