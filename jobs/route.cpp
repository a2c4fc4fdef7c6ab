// route: the routers, by balanced EM.
#include "jobs.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"

namespace smalltalk {

void add_route_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand("route", "Train the routers by balanced EM");
  auto options = std::make_shared<RunOptions>();
  add_run_options(*job, *options);
  job->footer(
      "Reads RUN/tokens/ (see prepare), writes RUN/routers/, RUN/rounds/ and RUN/routing.jsonl.\n"
      "  mpirun -n 4 smalltalk route jobs/tiny.toml --out RUN");
  job->callback([&run, options] {
    run = [options] {
      return run_stage(*options, Phase::route, true,
                       [](OpenedRun& opened) { route(opened.run, opened.plan, opened.world); });
    };
  });
}

}  // namespace smalltalk
