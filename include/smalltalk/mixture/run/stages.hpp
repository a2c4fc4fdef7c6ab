// The stages of a run and the files that mark them complete. This is the one place that knows: what
// makes a stage, what tells where a run stands and what submits the rest of it all read it here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/mixture/run/cells.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"
#include "smalltalk/mixture/run/work_queue.hpp"

namespace smalltalk {

// A piece of a run that is made as a whole.
struct Stage {
  std::string
      job;  // which makes it: "prepare", "order", "route", "shard", "train", "evaluate", "report"
  int64_t index = 0;                              // among the pieces of that job
  std::string name;                               // "routers", "experts/2", "part 0 of 4"
  std::vector<std::filesystem::path> marks = {};  // files: all there, it is complete
  std::vector<std::filesystem::path> files = {};  // files and folders of what it can go on from
  // Of a model: its mark must name a training of this length and these rates. None: not known.
  std::optional<Schedule> schedule = {};

  int64_t marks_there() const;
  bool complete() const;
  bool begun() const;  // something is there that it can go on from
};

// What the mark of a model says of its training; nothing where it is not there or cannot be read.
struct TrainedMark {
  std::optional<int64_t> steps;
  std::string schedule;  // empty: of an older version
};
TrainedMark read_trained_mark(const std::filesystem::path& file);

Stage tokens_stage(const RunLayout& layout);
Stage order_stage(const RunLayout& layout);  // of runs with data.order = similar
Stage routers_stage(const Run& run);
Stage shards_stage(const Run& run);
Stage unit_stage(const RunLayout& layout, const TrainUnit& unit);
// Of the cells of a run's own evaluation.
Stage evaluation_stage(const RunLayout& layout, const std::vector<EvalCell>& cells, WorkPart part);
Stage results_stage(const RunLayout& layout);

// All of them, in the order in which they are made; the evaluation in so many parts.
std::vector<Stage> stages_of(const Run& run, const std::vector<TrainUnit>& units,
                             int64_t evaluation_parts = 1);

// Error naming the first of the units that is not trained.
void require_trained(const RunLayout& layout, const std::vector<TrainUnit>& units);

// Calls `body`, which makes what was `complete` before or was not; if not, rank 0 adds the seconds
// that it took, until it was done or stopped, to those under this name in seconds.json.
void time_stage(const RunLayout& layout, const std::string& name, bool complete,
                const HostCollectives& ranks, const std::function<void()>& body);

}  // namespace smalltalk
