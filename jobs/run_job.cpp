#include "run_job.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/run/changes.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"

namespace smalltalk {

namespace {

std::string agree_on_start(Session& session) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  // The same length on every rank, so that one broadcast does.
  std::string start =
      fmt::format("{:016x}-{:08x}",
                  std::chrono::duration_cast<std::chrono::milliseconds>(now).count(), getpid());
  session.world().broadcast(std::as_writable_bytes(std::span(start)), 0);
  return start;
}

// When to stop because of the batch system's time limit, the same on all ranks.
double deadline_of(const StopOptions& options, Session& session) {
  double left = INFINITY;
  if (session.world().rank() == 0) {
    if (const auto seconds = slurm_seconds_left()) {
      left = *seconds - options.walltime_margin;
      log_info(fmt::format("{} left of the time limit: saves and ends in {}",
                           human_duration(*seconds), human_duration(std::max(0.0, left))));
    }
  }
  session.world().broadcast(std::as_writable_bytes(std::span(&left, 1)), 0);
  return now_seconds() + left;
}

}  // namespace

int run_watched(const StopOptions& options, const std::string& job, const std::string& run_folder,
                const std::function<int(Session&, const std::string& start)>& body) {
  catch_stop_signals(parse_signals(options.signals));
  return run_session(0, nullptr, job, [&](Session& session) {
    set_log_muted(session.world().rank() != 0);
    if (options.hang_timeout > 0) session.watch(options.hang_timeout);
    const std::string start = agree_on_start(session);
    StopSources sources;
    sources.deadline = deadline_of(options, session);
    if (!run_folder.empty()) {
      const RunLayout layout{run_folder};
      sources.file = layout.stop_file();
      sources.bell = layout.queue(start, "stop");
    }
    watch_for_stop(sources);
    return body(session, start);
  });
}

int threads_per_rank(Session& session) {
  const std::vector<int>& nodes = session.node_of_rank();
  const int mine = nodes[static_cast<size_t>(session.world().rank())];
  return std::max<int>(
      1, available_cores() / static_cast<int>(std::count(nodes.begin(), nodes.end(), mine)));
}

Run read_run(const RunOptions& options) {
  return load_run(options.experiment, options.overrides, options.out);
}

RankPlan plan_of(const Run& run, const std::vector<int>& node_of_rank) {
  const MixtureConfig& mixture = run.experiment.mixture;
  return plan_ranks(node_of_rank, static_cast<int>(mixture.experts),
                    static_cast<int>(mixture.group_size), run.experiment.expert_train.batch_size);
}

int run_stage(const RunOptions& options, Phase phase, bool needs_tokens,
              const std::function<void(OpenedRun&)>& body) {
  const auto stage = [&](Session& session, const std::string& start) {
    Communicator& world = session.world();
    OpenedRun opened{read_run(options), {}, world, start};
    Run& run = opened.run;
    opened.plan = plan_of(run, session.node_of_rank());
    configure_runtime(run.experiment.device, session.local_rank());
    const bool makes_stages = phase == Phase::prepare || phase == Phase::order ||
                              phase == Phase::route || phase == Phase::shard;
    const Claim claim = makes_stages            ? Claim::makes_stages
                        : phase == Phase::train ? Claim::trains
                                                : Claim::reads;
    const auto lock = claim_run_folder(run, host_collectives(world), claim);
    if (needs_tokens) open_tokens(run);
    set_ledger_phase(phase);
    if (phase == Phase::train) set_ledger_group(world.name());
    count_in_ledger(run.layout.ledger_folder(), start, world.rank(), [&] { body(opened); });
    return kExitDone;
  };
  return run_watched(options.stop, to_string(phase), options.out, stage);
}

}  // namespace smalltalk
