// The stages that `launch` strings together and the other jobs run one by one: one code path.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "smalltalk/comm/rank_plan.hpp"
#include "smalltalk/comm/session.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/mixture/evaluation/comparison.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/routing/router_em.hpp"
#include "smalltalk/mixture/routing/sharding.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

// When a long job ends before its work does.
struct StopOptions {
  std::string signals = "USR1,USR2,TERM";
  double walltime_margin = 120;  // seconds
  double hang_timeout = 1800;    // seconds; 0: nobody watches
};
void add_stop_options(CLI::App& job, StopOptions& options);

// Some of many pieces of work: those with index part, part + parts, ...
struct WorkPart {
  int64_t part = 0, parts = 1;
};
// --part and --parts; `rest` is what such a part leaves out.
void add_part_options(CLI::App& job, WorkPart& part, const std::string& rest);
void require_part(const WorkPart& part);  // Error if there is no such part

// What every job that works on a run is told.
struct RunOptions {
  std::string experiment;              // file
  std::string out;                     // run folder
  std::vector<std::string> overrides;  // --set section.key=value
  StopOptions stop;
};
void add_run_options(CLI::App& job, RunOptions& options);

// A session whose ranks stop when they are asked to (core/system/stop.hpp) and watch each other.
// `start` is a name for this start of the job, the same on all ranks: claims of an earlier start do
// not count. With a run folder, also its file `stop` is heeded. Returns the exit code.
int run_watched(const StopOptions& options, const std::string& job, const std::string& run_folder,
                const std::function<int(Session&, const std::string& start)>& body);

// --method, --epsilon and --shares of the jobs that assign.
void add_assignment_options(CLI::App& job, std::string& method, double& epsilon,
                            std::vector<double>& shares);
// Cores of this machine for each of the session's ranks on it.
int threads_per_rank(Session& session);

// A run whose experiment was loaded and checked; its tokens are not open. Writes nothing.
Run read_run(const RunOptions& options);
// What each rank does in it, by the index of its node.
RankPlan plan_of(const Run& run, const std::vector<int>& node_of_rank);
// Error: the run folder holds another experiment, and something was computed for it.
void require_same_experiment(const Run& run);
// Proves that the run folder can be written to and holds no other experiment; writes
// experiment.toml. Collective.
void claim_run_folder(const Run& run, Communicator& world);
// The right to make tokens, routers and shards of a run, which one job at a time has. Held by rank
// 0. Error: another job has it, and keeps it. Collective.
std::unique_ptr<WriteLock> lock_stages(const Run& run, Communicator& world,
                                       double patience_seconds = 3);

// Tokenizer and the three token files, those that are missing. Collective.
void prepare_tokens_of(const Run& run, Communicator& world);
// Tokens of other text, RUN/tokens/NAME.h5, for models to be compared on. Collective. Error: a name
// that is no good for a file, or one of the three splits; the tokens there are of other text.
void prepare_text(const Run& run, const std::string& name, const std::vector<std::string>& files,
                  Communicator& world);
// Error: the split's tokens are not there, of another tokenizer, or less than one sequence.
void require_split(const Run& run, const std::string& split);
// Opens the training tokens, checks that all token files are of one tokenizer and that the corpus
// is large enough; sets vocab_size and provenance.
void open_tokens(Run& run);

void route(const Run& run, const RankPlan& plan, Communicator& world);
ShardOptions shard_options(const Run& run);  // as the experiment has it
void shard(const Run& run, Communicator& world, const ShardOptions& options);  // shards.h5

// Error naming the first of them that is not trained.
void require_trained(const Run& run, const std::vector<TrainUnit>& units);

// Work that any process may do.
struct Work {
  std::string name;
  std::function<bool()> complete;
  std::function<void()> compute;
  std::function<bool()> ready = [] { return true; };
};
// Does what is ready and nobody else does, each piece once. Needs no other rank. Whether all is
// complete, no part of it left to others, and this process the one to go on.
bool work_off(const RunLayout& layout, const std::string& start, const std::vector<Work>& pieces,
              WorkPart part = {});
// The same for cells, which are ready when their models are trained.
bool compute_cells(const Run& run, const std::string& start, const std::vector<EvalCell>& cells,
                   WorkPart part = {});
// Evaluates what is complete and unclaimed, then writes results.json and report.html if nothing is
// missing and all cells were asked for. Needs no other rank. Returns true if this process wrote
// them.
bool evaluate_from_queue(const Run& run, const std::string& start, WorkPart part = {});

// Compares, writes RUN/comparison-SPLIT.json and renews the page. REQUIRES compare_cells().
Comparison write_comparison(const Run& run, const std::vector<TrainUnit>& units,
                            const CompareOptions& options);

// Appends the seconds of a stage to seconds.json.
void record_seconds(const RunLayout& layout, const std::string& stage, double seconds);

// All that launch computes, from tokens to results. The world talks until the shards are written,
// then each group alone, over the communicator that is named in own_group as soon as there is one.
void run_stages(Run& run, const RankPlan& plan, Communicator& world, const std::string& start,
                std::string& own_group);

// What the job of a stage works with, on every rank.
struct OpenedRun {
  Run run;
  RankPlan plan;
  Communicator& world;
  std::string start;  // names this start of the job
};
// A job of one stage: opens the run under MPI, then calls `body` on every rank with all that comes
// before it in place. Returns the exit code.
int run_stage(const RunOptions& options, const std::string& job, bool needs_tokens,
              const std::function<void(OpenedRun&)>& body);

// Writes this rank's ledger file. `own_group` is the only communicator allowed after the shards.
void write_ledger(const RunLayout& layout, const std::string& start, int rank,
                  const std::string& own_group);
// Calls `body`, then writes the ledger, also if `body` was stopped. `own_group` may change
// meanwhile.
void count_in_ledger(const RunLayout& layout, const std::string& start, int rank,
                     const std::string& own_group, const std::function<void()>& body);

}  // namespace smalltalk
