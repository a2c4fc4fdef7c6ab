// launch: the whole run in one mpirun.
#include <fmt/format.h>

#include <iostream>

#include "estimate.hpp"
#include "jobs.hpp"
#include "preflight.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/run/changes.hpp"

namespace smalltalk {

namespace {

struct LaunchJob {
  RunOptions run;
  bool dry_run = false;
  int world = 0;  // ranks to plan for; 0: those that were started
  int nodes = 1;  // that they lie on
};

constexpr int kMostRanks = 1 << 20;  // of a plan

// On a login node, too, which may have no GPU, no text, and one process only.
int plan_only(const LaunchJob& job, const Run& run, Session& session) {
  const bool as_started = job.world == 0;
  const RankPlan plan =
      plan_of(run, as_started ? session.node_of_rank() : nodes_in_blocks(job.world, job.nodes));
  if (as_started) {
    try {
      configure_runtime(run.experiment.device, session.local_rank());
    } catch (const Error& error) {
      log_warning(error.what());
    }
  }
  require_slices(run.experiment, plan);
  const Estimate expected = estimate(run, plan);
  if (session.world().rank() == 0) {
    std::cout << to_string(plan) << describe(expected) << std::flush;
  }
  const Changes changes = require_compatible(run);
  if (session.world().rank() == 0 && !changes.none()) {
    std::cout << "what is there\n" << describe(changes) << std::flush;
  }
  require_batches(run.experiment, plan);
  require_runnable(run);
  require_disk_space(run, expected);
  return kExitDone;
}

int launch(const LaunchJob& job, Session& session, const std::string& start) {
  Communicator& world = session.world();
  const int rank = world.rank();
  set_ledger_phase(Phase::start);
  Run run = read_run(job.run);
  if (job.dry_run) return plan_only(job, run, session);
  const RankPlan plan = plan_of(run, session.node_of_rank());
  configure_runtime(run.experiment.device, session.local_rank());
  require_batches(run.experiment, plan);
  require_slices(run.experiment, plan);
  require_runnable(run);
  const HostCollectives ranks = host_collectives(world);
  const auto lock = claim_run_folder(run, ranks, Claim::makes_stages);
  require_disk_space(run, estimate(run, plan));
  if (rank == 0) std::cerr << to_string(plan) << std::flush;

  count_in_ledger(run.layout.ledger_folder(), start, rank,
                  [&] { run_stages(run, plan, world, start); });
  return kExitDone;
}

}  // namespace

void add_launch_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand(
      "launch", "The whole run: tokens, routers, shards, experts, baselines, evaluation, report");
  auto job = std::make_shared<LaunchJob>();
  add_run_options(*sub, job->run);
  auto* dry_run = sub->add_flag(
      "--dry-run", job->dry_run,
      "Print who does what, FLOPs, memory, disk, traffic and time; then say what would fail. "
      "Computes nothing, and needs no GPU");
  auto* world = sub->add_option("--world", job->world,
                                "With --dry-run: plan for so many ranks, not for those started")
                    ->check(CLI::Range(1, kMostRanks))
                    ->needs(dry_run);
  sub->add_option("--nodes", job->nodes,
                  "On so many nodes; if they do not divide the ranks, the first ones have one more")
      ->check(CLI::Range(1, kMostRanks))
      ->capture_default_str()
      ->needs(world);
  sub->footer(
      "Start it under mpirun or srun; with the same --out it goes on where it was.\n"
      "  mpirun -n 4 smalltalk launch jobs/tiny.toml --out runs/tiny\n"
      "A plan for a cluster, from its login node:\n"
      "  smalltalk launch jobs/smalltalk-335m-x4.toml --out RUN --dry-run --world 32 --nodes 4");
  sub->callback([&run, job] {
    if (job->world > 0 && job->nodes > job->world) {
      throw CLI::ValidationError(
          "--nodes",
          fmt::format("{} nodes are more than the {} ranks of --world", job->nodes, job->world));
    }
    run = [job] {
      return run_watched(
          job->run.stop, "launch", job->dry_run ? "" : job->run.out,
          [&](Session& session, const auto& start) { return launch(*job, session, start); });
    };
  });
}

}  // namespace smalltalk
