#include "smalltalk/mixture/evaluation/sweep_runs.hpp"

#include <fmt/format.h>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/mixture/evaluation/comparison.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

PlannedRun plan_run(const Sweep& sweep, const SweepRun& run, uint64_t seed,
                    const SweepLayout& layout) {
  PlannedRun planned;
  planned.name = run.name;
  planned.overrides = run.overrides;
  planned.overrides.push_back(fmt::format("seed={}", seed));
  planned.run = load_run(sweep.experiment, planned.overrides, layout.run(run.name, seed));
  planned.needs = sweep.needs_of(run.name);
  planned.needs.data["test"];  // of every run's own page
  Experiment sized = planned.run.experiment;
  sized.adopt_tokens(sized.data.vocab_size, kEndToken);
  planned.units = train_units(sized, sized.mixture.experts);
  for (const TrainUnit& unit : planned.units) planned.cost += unit_flops(sized, unit);
  return planned;
}

}  // namespace

bool PlannedRun::complete() const {
  if (!fs::exists(run.layout.tokens("train"))) return false;
  for (const TrainUnit& unit : units_of(run)) {  // `units` do not know how long dense models train
    if (!unit_stage(run.layout, unit).complete()) return false;
  }
  for (const auto& [data, steps] : needs.data) {
    // Comparisons are written last; one of before lacks the cells of a model that came later.
    if (!fs::exists(run.layout.comparison(data))) return false;
    CompareOptions options;
    options.split = data;
    options.steps = steps;
    for (const EvalCell& cell : compare_cells(run.experiment, units, options)) {
      if (!cell_complete(run.layout, cell)) return false;
    }
  }
  return true;
}

std::vector<PlannedRun> plan_runs(const Sweep& sweep, const SweepLayout& layout,
                                  const std::function<void(const Run&)>& check) {
  std::vector<PlannedRun> runs;
  for (const SweepRun& run : sweep.runs) {
    for (const uint64_t seed : run.seeds) {
      try {
        runs.push_back(plan_run(sweep, run, seed, layout));
        check(runs.back().run);
      } catch (const Error& error) {
        throw Error(fmt::format("run {}: {}", run.name, error.what()));
      }
    }
  }
  return runs;
}

void require_steps(const PlannedRun& planned) {
  const TrainConfig& train = planned.run.experiment.expert_train;
  for (const auto& [data, steps] : planned.needs.data) {
    for (const int64_t step : steps) {
      const bool reached = !checkpoint_cells(planned.units, data, {step}).empty();
      const bool kept = step > 0 && train.keep_every > 0 && step % train.keep_every == 0;
      if (reached && kept) continue;
      throw Error(fmt::format(
          "run {}: a table shows its step {}, which is no checkpoint: expert.keep_every "
          "is {}, and training must go on behind it",
          planned.name, step, train.keep_every));
    }
  }
}

}  // namespace smalltalk
