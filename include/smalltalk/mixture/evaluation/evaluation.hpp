// Evaluation as independent cells: (model, split) gives the log-likelihood of every token, cached
// in a file; everything after is arithmetic on the cache. A cell needs one model in memory and no
// other rank; any process may compute any cell.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/mixture/evaluation/routing_rules.hpp"
#include "smalltalk/mixture/run/cells.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"
#include "smalltalk/mixture/run/work_queue.hpp"

namespace smalltalk {

// Whether a cell is there, computed with the weights that are there.
bool cell_complete(const RunLayout& layout, const EvalCell& cell);
// REQUIRES the cell's models to be complete. Writes its file(): log-likelihoods of the
// targets [N, S], in nats; for "routers", of the first M tokens under each of them [N, E]. Throws
// Stopped if this process is asked to stop; what it has found by then is kept.
void evaluate_cell(const Run& run, const EvalCell& cell);
TokenLikelihoods read_cell(const RunLayout& layout, const EvalCell& cell);
// Evaluates those cells that no other process has claimed and whose models are trained. Returns as
// work_off() does.
bool compute_cells(const Run& run, const std::string& start, const std::vector<EvalCell>& cells,
                   WorkPart part = {});

// Of `nats` summed over so many targets of a file. Their bytes are taken as their share of the
// file's tokens.
double bits_per_byte(double nats, int64_t num_targets, const TokenFileInfo& info);

// Arithmetic on the complete cells of a mixture that belongs together (else Error): results.json
// (schema in the README). `units` as trained.
void write_results(const Run& run, const std::vector<TrainUnit>& units);

}  // namespace smalltalk
