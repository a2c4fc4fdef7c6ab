// launch: the whole run in one mpirun.
#include <fmt/format.h>

#include <iostream>

#include "estimate.hpp"
#include "jobs.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/run/changes.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace {

int launch(const RunOptions& options, bool dry_run, Session& session, const std::string& start) {
  Communicator& world = session.world();
  const int rank = world.rank();
  set_ledger_phase(Phase::start);
  Run run = read_run(options);
  const RankPlan plan = plan_of(run, session.node_of_rank());
  configure_runtime(run.experiment.device, session.local_rank());
  if (!tokens_stage(run.layout).complete()) require_text(run.experiment.data);
  if (dry_run) {
    require_compatible(run);
    if (rank == 0) std::cout << to_string(plan) << describe(estimate(run, plan)) << std::flush;
    require_disk_space(run, plan);
    return kExitDone;
  }
  const HostCollectives ranks = host_collectives(world);
  const auto lock = claim_run_folder(run, ranks, true);
  require_disk_space(run, plan);
  if (rank == 0) std::cerr << to_string(plan) << std::flush;

  count_in_ledger(run.layout.ledger_folder(), start, rank,
                  [&] { run_stages(run, plan, world, start); });
  return kExitDone;
}

}  // namespace

void add_launch_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand(
      "launch", "The whole run: tokens, routers, shards, experts, baselines, evaluation, report");
  auto options = std::make_shared<RunOptions>();
  auto dry_run = std::make_shared<bool>(false);
  add_run_options(*job, *options);
  job->add_flag("--dry-run", *dry_run,
                "Print who does what, FLOPs, memory, disk, traffic and time; compute nothing");
  job->footer(
      "Start it under mpirun or srun; with the same --out it goes on where it was.\n"
      "  mpirun -n 4 smalltalk launch jobs/tiny.toml --out runs/tiny");
  job->callback([&run, options, dry_run] {
    run = [options, dry_run] {
      return run_watched(options->stop, "launch", *dry_run ? "" : options->out,
                         [&](Session& session, const auto& start) {
                           return launch(*options, *dry_run, session, start);
                         });
    };
  });
}

}  // namespace smalltalk
