// train: one model of a run, by all ranks of the job together. A Slurm array runs one expert per
// element, so that a crash costs one expert.
#include <fmt/format.h>

#include "jobs.hpp"
#include "run_job.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

namespace {

// What is to be trained; one of them is given.
struct Which {
  int64_t expert = -1, unit = -1;
  std::string model;
};

TrainUnit chosen_unit(const Run& run, const Which& which) {
  const std::vector<TrainUnit> units = units_of(run);
  if (which.expert >= 0) return find_unit(units, expert_name(which.expert));
  if (!which.model.empty()) return find_unit(units, which.model);
  if (which.unit < 0) throw Error("say what to train: --expert K, --model NAME or --unit N");
  if (which.unit >= std::ssize(units)) {
    throw Error(fmt::format("--unit {}: this experiment has {} models, counted from 0", which.unit,
                            units.size()));
  }
  return units[static_cast<size_t>(which.unit)];
}

}  // namespace

void add_train_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand("train", "Train one expert or one baseline of a run");
  auto options = std::make_shared<RunOptions>();
  auto which = std::make_shared<Which>();
  add_run_options(*job, *options);
  auto* expert_option = job->add_option("--expert", which->expert, "Index of the expert, from 0")
                            ->check(CLI::NonNegativeNumber);
  auto* model_option =
      job->add_option("--model", which->model,
                      "Any model of the run by its folder: experts/0, baselines/dense, lory, "
                      "baselines/random_shards/0, ...")
          ->excludes(expert_option);
  job->add_option("--unit", which->unit,
                  "Any model of the run by its number: the experts, then the baselines; the index "
                  "of a Slurm array")
      ->check(CLI::NonNegativeNumber)
      ->excludes(expert_option)
      ->excludes(model_option);
  job->footer(
      "All ranks of the job train this one model together; from its checkpoint, if there\n"
      "is one. Reads RUN/tokens/ and RUN/shards.h5.\n"
      "  mpirun -n 2 smalltalk train jobs/tiny.toml --out RUN --expert 3");
  job->callback([&run, options, which] {
    run = [options, which] {
      return run_stage(*options, Phase::train, true, [&](OpenedRun& opened) {
        train_unit(opened.run, chosen_unit(opened.run, *which), host_collectives(opened.world));
      });
    };
  });
}

}  // namespace smalltalk
