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
// Writes the cell's file(): log-likelihoods of the targets in nats, [N, S]; for "routers", those of
// the first M tokens under each router, [N, E]; for kRouting, sums over the segments of each
// sequence (lory_routing.hpp). REQUIRES the cell's models to be complete. Throws Stopped if this
// process is asked to stop; what it has found by then is kept.
void evaluate_cell(const Run& run, const EvalCell& cell);
TokenLikelihoods read_cell(const RunLayout& layout, const EvalCell& cell);
// Evaluates those cells that no other process has claimed and whose models are trained. Returns as
// work_off() does.
bool compute_cells(const Run& run, const std::string& start, const std::vector<EvalCell>& cells,
                   WorkPart part = {});

// Bits per byte of text, from nats summed over so many of a file's targets. How many bytes these
// targets stand for is estimated: as many of the file's bytes as they are of its tokens.
double bits_per_byte(double nats, int64_t num_targets, const TokenFileInfo& info);

// Writes results.json (data/README.md) from the cells of `units`, the models of a run as they were
// trained. REQUIRES the cells to be complete. Error: the mixture does not belong together.
struct ResultLines {
  std::string perplexities;
  std::vector<std::string> warnings;  // of routers or experts of Lory that do nothing
};
ResultLines write_results(const Run& run, const std::vector<TrainUnit>& units);

}  // namespace smalltalk
