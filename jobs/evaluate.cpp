// evaluate: perplexities of all models of a run, and results.json.
#include <fmt/format.h>

#include "jobs.hpp"
#include "pipeline.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/mixture/run/provenance.hpp"

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
      return run_stage(*options, "evaluate", true, [&](OpenedRun& opened) {
        const Run& run = opened.run;
        require_part(*part);
        require_trained(run, units_of(run));
        require_one_mixture(run, units_of(run));
        if (evaluate_from_queue(run, opened.start, *part)) {
          set_log_muted(false);
          log_info(fmt::format("wrote {}", run.layout.results().string()));
        }
      });
    };
  });
}

}  // namespace smalltalk
