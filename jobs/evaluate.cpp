// evaluate: perplexities of all models of a run, and results.json.
#include "jobs.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/mixture/run/provenance.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

void add_evaluate_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand("evaluate", "Evaluate all models of a run, write results.json");
  auto options = std::make_shared<RunOptions>();
  auto part = std::make_shared<WorkPart>();
  add_run_options(*job, *options);
  add_part_options(*job, *part, "results");
  job->footer(
      "Any number of ranks share the cells (model x split) through a queue of files;\n"
      "what was computed before is not computed again.\n"
      "  mpirun -n 4 smalltalk evaluate jobs/tiny.toml --out RUN");
  job->callback([&run, options, part] {
    run = [options, part] {
      return run_stage(*options, Phase::evaluate, true, [&](OpenedRun& opened) {
        const Run& trained = opened.run;
        require_part(*part);
        require_trained(trained.layout, units_of(trained));
        require_one_mixture(trained, units_of(trained));
        evaluate_from_queue(trained, opened.start, *part);
      });
    };
  });
}

}  // namespace smalltalk
