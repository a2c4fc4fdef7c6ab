// Everyone talks until the shards are written; after that each group trains its experts alone,
// takes baselines and evaluation from a queue of files, and whoever finishes last writes the
// results.
#include "run_stages.hpp"

#include <fmt/format.h>

#include "run_job.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/report/report.hpp"
#include "smalltalk/mixture/routing/router_em.hpp"
#include "smalltalk/mixture/routing/tfidf.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace {

// Binds the plan of the ranks to the collectives that the EM is handed.
RouterHosting hosting_of(const RankPlan& plan, Communicator& world, Communicator& block) {
  const RankRole& role = plan.ranks[static_cast<size_t>(world.rank())];
  RouterHosting hosting;
  hosting.trains = role.trains_routers;
  for (const RankRole& other : plan.ranks) {
    hosting.shares.push_back({other.scores_routers, other.score_part, other.score_parts});
  }
  hosting.world = host_collectives(world);
  hosting.block = host_collectives(block);
  return hosting;
}

// The ranks that score with the same router; a rank with several routers shares them with nobody.
Communicator split_blocks(const RankPlan& plan, Communicator& world) {
  const RankRole& role = plan.ranks[static_cast<size_t>(world.rank())];
  const int color =
      role.score_parts > 1 ? role.scores_routers.at(0) : plan.num_experts + world.rank();
  return world.split(color, world.rank(), "router block");
}

// Trains the group's own experts, then baselines that no other group has claimed. Returns when
// there is nothing left to claim.
void train_all(const Run& run, const RankRole& role, int rank, Communicator& group,
               const std::string& start) {
  const HostCollectives collectives = host_collectives(group);
  const std::vector<TrainUnit> units = units_of(run);
  const auto train = [&](const TrainUnit& unit) {
    train_unit(run, unit, collectives,
               [&] { write_ledger(run.layout.ledger_folder(), start, rank); });
  };
  set_ledger_phase(Phase::experts);
  for (const int e : role.experts) train(units[static_cast<size_t>(e)]);

  set_ledger_phase(Phase::baselines);
  for (const TrainUnit& unit : units) {
    if (unit.kind->role == Role::mixture) continue;
    // The group's first rank decides for the group: another group may complete the unit meanwhile,
    // and each rank would see that at another moment.
    const bool mine = group.rank() == 0 && !unit_stage(run.layout, unit).complete() &&
                      claim(run.layout.queue(start, unit.name), fmt::format("rank {}", rank));
    if (first_rank_says(mine, collectives)) train(unit);
  }
}

}  // namespace

void order_documents(const Run& run, Communicator& world, const OrderOptions& options,
                     bool keeps_any) {
  const HostCollectives ranks = host_collectives(world);
  const bool complete = order_stage(run.layout).complete();
  time_stage(run.layout, "order", complete, ranks, [&] {
    world.barrier();  // everyone has looked before anyone writes
    make_order(run, ranks, options, keeps_any);
  });
}

void route(const Run& run, const RankPlan& plan, Communicator& world) {
  require_mixture(run);
  const bool complete = routers_stage(run).complete();
  time_stage(run.layout, "route", complete, host_collectives(world), [&] {
    Communicator block = split_blocks(plan, world);
    train_routers(run, hosting_of(plan, world, block));
  });
}

ShardOptions shard_options(const Run& run) {
  ShardOptions options;
  options.assign.method = run.experiment.mixture.assignment;
  options.assign.threads = static_cast<int>(run.experiment.device.threads);
  return options;
}

void shard(const Run& run, Communicator& world, const ShardOptions& options) {
  require_mixture(run);
  const HostCollectives ranks = host_collectives(world);
  if (run.experiment.baselines.tfidf_shards) {  // first: with shards.h5 the stage is complete
    const bool complete = std::filesystem::exists(run.layout.tfidf_shards());
    time_stage(run.layout, "tfidf", complete, ranks,
               [&] { publish_tfidf_shards(run, ranks, options.assign); });
  }
  const bool complete = shards_stage(run).complete();
  time_stage(run.layout, "shard", complete, ranks, [&] {
    world.barrier();  // everyone has looked before anyone writes
    shard_corpus(run, ranks, options);
  });
}

void evaluate_from_queue(const Run& run, const std::string& start, WorkPart part) {
  const std::vector<TrainUnit> units = units_of(run);
  if (!compute_cells(run, start, eval_cells(units), part)) return;
  const ResultLines lines = write_results(run, units);
  const std::filesystem::path report = write_report(run.layout.root);
  set_log_muted(false);  // whichever rank comes last
  log_info(fmt::format("wrote {} and {}", run.layout.results().string(), report.string()));
  log_info(lines.perplexities);
  for (const std::string& warning : lines.warnings) log_warning(warning);
}

Comparison write_comparison(const Run& run, const std::vector<TrainUnit>& units,
                            const CompareOptions& options) {
  Comparison comparison = compare(run, units, options);
  write_text_atomically(run.layout.comparison(comparison.split), comparison_json(comparison));
  write_report(run.layout.root);
  return comparison;
}

void run_stages(Run& run, const RankPlan& plan, Communicator& world, const std::string& start) {
  const int rank = world.rank();
  set_ledger_phase(Phase::prepare);
  prepare_tokens_of(run, host_collectives(world));
  if (run.experiment.data.order == TextOrder::similar) {
    set_ledger_phase(Phase::order);
    order_documents(run, world, {}, true);
  }
  open_tokens(run);
  if (run.experiment.has_mixture()) {
    set_ledger_phase(Phase::route);
    route(run, plan, world);
    set_ledger_phase(Phase::shard);
    shard(run, world, shard_options(run));
  }

  // From here on nobody talks outside its group.
  const RankRole& role = plan.ranks[static_cast<size_t>(rank)];
  const bool spare = role.group < 0;
  Communicator group = world.split(spare ? plan.num_groups + rank : role.group, rank,
                                   fmt::format("group {}", role.group));
  set_ledger_group(group.name());
  set_log_muted(group.rank() != 0);
  if (world.size() > 1) {
    set_log_prefix(spare ? fmt::format("launch spare rank {}", rank)
                         : fmt::format("launch group {}", role.group));
  }
  if (!spare) train_all(run, role, rank, group, start);
  set_ledger_phase(Phase::evaluate);
  evaluate_from_queue(run, start);
}

}  // namespace smalltalk
