// train: one model of a run, by all ranks of the job together. A Slurm array runs one expert per
// element, so that a crash costs one expert.
#include <fmt/format.h>

#include "jobs.hpp"
#include "pipeline.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {

void add_train_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand("train", "Train one expert or one baseline of a run");
  auto options = std::make_shared<RunOptions>();
  auto expert = std::make_shared<int64_t>(-1);
  auto model = std::make_shared<std::string>();
  add_run_options(*job, *options);
  auto* expert_option = job->add_option("--expert", *expert, "Index of the expert, from 0")
                            ->check(CLI::NonNegativeNumber);
  job->add_option("--model", *model,
                  "Any model of the run by its folder: experts/0, baselines/dense, "
                  "baselines/random_shards/0, ...")
      ->excludes(expert_option);
  job->footer(
      "All ranks of the job train this one model together; from its checkpoint, if there\n"
      "is one. Reads RUN/tokens/ and RUN/shards.h5.\n"
      "  mpirun -n 2 smalltalk train jobs/tiny.toml --out RUN --expert 3");
  job->callback([&run, options, expert, model] {
    run = [options, expert, model] {
      return run_stage(
          *options, "train", true, [&](Run& opened, Session& session, const std::string& start) {
            if (*expert < 0 && model->empty()) {
              throw Error("say what to train: --expert K or --model NAME");
            }
            const TrainUnit unit =
                find_unit(opened, *expert >= 0 ? fmt::format("experts/{}", *expert) : *model);
            train_unit(opened.experiment, opened.tokens, opened.layout, unit,
                       host_collectives(session.world()), opened.provenance);
            write_ledger(opened.layout, start, session.world().rank(), session.world().name());
          });
    };
  });
}

}  // namespace smalltalk
