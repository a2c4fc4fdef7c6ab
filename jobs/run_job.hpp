// How a job that works on a run begins and ends: its session, its run, its ledger.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "options.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/comm/rank_plan.hpp"
#include "smalltalk/comm/session.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// A session whose ranks stop when they are asked to (core/system/stop.hpp) and watch each other.
// `start` is a name for this start of the job, the same on all ranks: claims of an earlier start do
// not count. With a run folder, also its file `stop` is heeded. Returns the exit code.
int run_watched(const StopOptions& options, const std::string& job, const std::string& run_folder,
                const std::function<int(Session&, const std::string& start)>& body);

// Cores of this machine for each of the session's ranks on it.
int threads_per_rank(Session& session);

Run read_run(const RunOptions& options);
// What each rank does in a run, by the index of its node.
RankPlan plan_of(const Run& run, const std::vector<int>& node_of_rank);

// What the job of a stage works with, on every rank.
struct OpenedRun {
  Run run;
  RankPlan plan;
  Communicator& world;
  std::string start;  // names this start of the job
};
// A job of one stage, by the name of its phase: opens the run under MPI, then calls `body` on every
// rank with all that comes before it in place. Returns the exit code.
int run_stage(const RunOptions& options, Phase phase, bool needs_tokens,
              const std::function<void(OpenedRun&)>& body);

}  // namespace smalltalk
