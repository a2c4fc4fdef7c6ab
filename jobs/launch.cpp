// launch: the whole run in one mpirun. Everyone talks until the shards are written; after that each
// group trains its experts alone, takes baselines and evaluation from a queue of files, and whoever
// finishes last writes the results.
#include <fmt/format.h>

#include <iostream>

#include "estimate.hpp"
#include "jobs.hpp"
#include "pipeline.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"

namespace smalltalk {

namespace {

// Trains the group's own experts, then baselines that no other group has claimed. Returns when
// there is nothing left to claim.
void train_all(const Run& run, const RankRole& role, int rank, Communicator& group,
               const std::string& start) {
  const HostCollectives collectives = host_collectives(group);
  const std::vector<TrainUnit> units = units_of(run);
  const auto train = [&](const TrainUnit& unit) {
    train_unit(run, unit, collectives,
               [&] { write_ledger(run.layout, start, rank, group.name()); });
  };
  set_ledger_phase("experts");
  for (const int e : role.experts) train(units[static_cast<size_t>(e)]);

  set_ledger_phase("baselines");
  for (const TrainUnit& unit : units) {
    if (unit.rows == Rows::shard) continue;
    // The group's first rank decides for the group: another group may complete the unit meanwhile,
    // and each rank would see that at another moment.
    const bool mine = group.rank() == 0 && !unit_complete(run.layout, unit) &&
                      claim(run.layout.queue(start, unit.name), fmt::format("rank {}", rank));
    if (first_rank_says(mine, collectives)) train(unit);
  }
}

}  // namespace

void run_stages(Run& run, const RankPlan& plan, Communicator& world, const std::string& start,
                std::string& own_group) {
  const int rank = world.rank();
  set_ledger_phase("prepare");
  prepare_tokens_of(run, world);
  open_tokens(run);
  set_ledger_phase("route");
  route(run, plan, world);
  set_ledger_phase("shard");
  shard(run, world, shard_options(run));

  // From here on nobody talks outside its group.
  const RankRole& role = plan.ranks[static_cast<size_t>(rank)];
  const bool spare = role.group < 0;
  Communicator group = world.split(spare ? plan.num_groups + rank : role.group, rank,
                                   fmt::format("group {}", role.group));
  own_group = group.name();
  set_log_muted(group.rank() != 0);
  if (world.size() > 1) {
    set_log_prefix(spare ? fmt::format("launch spare rank {}", rank)
                         : fmt::format("launch group {}", role.group));
  }
  if (!spare) train_all(run, role, rank, group, start);
  set_ledger_phase("evaluate");
  const bool last = evaluate_from_queue(run, start);
  if (last) {
    log_info(fmt::format("wrote {} and {}", run.layout.results().string(),
                         run.layout.report().string()));
  }
}

namespace {

int launch(const RunOptions& options, bool dry_run, Session& session, const std::string& start) {
  Communicator& world = session.world();
  const int rank = world.rank();
  set_ledger_phase("start");
  Run run = read_run(options);
  const RankPlan plan = plan_of(run, session.node_of_rank());
  configure_runtime(run.experiment.device, session.local_rank());
  if (dry_run) {
    if (rank == 0) std::cout << to_string(plan) << describe(estimate(run, plan)) << std::flush;
    require_disk_space(run, plan);
    return kExitDone;
  }
  claim_run_folder(run, world);
  require_disk_space(run, plan);
  const auto lock = lock_stages(run, world);
  if (rank == 0) std::cerr << to_string(plan) << std::flush;

  std::string own_group;
  count_in_ledger(run.layout, start, rank, own_group,
                  [&] { run_stages(run, plan, world, start, own_group); });
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
