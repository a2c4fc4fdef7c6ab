// Evaluation as independent cells: (model, split) gives the log-likelihood of every token, cached
// in a file; everything after is arithmetic on the cache. A cell needs one model in memory and no
// other rank; any process may compute any cell.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/mixture/evaluation/routing_rules.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

struct EvalCell {
  std::string split;  // whose tokens: "validation", "test" or the name of other text
  // A model's folder below the run, "routers/3" included; or "routers": the scores of all, by which
  // the mixture routes.
  std::string unit;
  int64_t step = 0;  // of one of its checkpoints; 0: the trained model

  std::string model() const;  // unit and step
  std::string name() const;   // that of the cell, all in one
  std::filesystem::path file(const RunLayout& layout) const;
};

// All cells of a run: each unit and the routers on both splits.
std::vector<EvalCell> eval_cells(const std::vector<TrainUnit>& units);
// Each router as a model of its own, which a run's results do without.
std::vector<EvalCell> router_cells(const std::string& split, int64_t num_experts);
// Whether a cell is there, computed with the weights that are there.
bool cell_complete(const RunLayout& layout, const EvalCell& cell);
// REQUIRES the cell's models to be complete. Writes its file(): log-likelihoods of the
// targets [N, S], in nats; for "routers", of the first M tokens under each of them [N, E]. Throws
// Stopped if this process is asked to stop; what it has found by then is kept.
void evaluate_cell(const Run& run, const EvalCell& cell);
TokenLikelihoods read_cell(const RunLayout& layout, const EvalCell& cell);

// Of `nats` summed over so many targets of a file. Their bytes are taken as their share of the
// file's tokens.
double bits_per_byte(double nats, int64_t num_targets, const TokenFileInfo& info);

// Arithmetic on the complete cells of a mixture that belongs together (else Error): results.json
// (schema in the README). `units` as trained.
void write_results(const Run& run, const std::vector<TrainUnit>& units);

}  // namespace smalltalk
