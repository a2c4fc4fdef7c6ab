// route and shard: the two collective stages.
#include "jobs.hpp"
#include "pipeline.hpp"

namespace smalltalk {

namespace {

void add_collective_stage(CLI::App& app, JobRun& run, const std::string& name,
                          const std::string& description, const std::string& footer,
                          void (*stage)(const Run&, Session&)) {
  auto* job = app.add_subcommand(name, description);
  auto options = std::make_shared<RunOptions>();
  add_run_options(*job, *options);
  job->footer(footer);
  job->callback([&run, options, name, stage] {
    run = [options, name, stage] {
      return run_stage(*options, name, true,
                       [&](Run& opened, Session& session, const std::string& start) {
                         stage(opened, session);
                         write_ledger(opened.layout, start, session.world().rank(), "");
                       });
    };
  });
}

}  // namespace

void add_route_job(CLI::App& app, JobRun& run) {
  add_collective_stage(app, run, "route", "Train the routers by balanced EM",
                       "Reads RUN/tokens/ (see prepare), writes RUN/routers/, RUN/rounds/ and "
                       "RUN/routing.jsonl.\n  mpirun -n 4 smalltalk route jobs/tiny.toml --out RUN",
                       route);
}

void add_shard_job(CLI::App& app, JobRun& run) {
  add_collective_stage(app, run, "shard", "Assign every sequence to an expert with the routers",
                       "Reads RUN/tokens/ and RUN/routers/, writes RUN/shards.h5 (and "
                       "RUN/random_shards.h5, the control's).\n"
                       "  mpirun -n 4 smalltalk shard jobs/tiny.toml --out RUN",
                       shard);
}

}  // namespace smalltalk
