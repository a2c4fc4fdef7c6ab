#include "smalltalk/mixture/run/run_status.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "mixture/run/text_or_nothing.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

std::vector<Stage> stages_and_launch(const Run& run, const std::vector<TrainUnit>& units,
                                     int64_t evaluation_parts) {
  std::vector<Stage> stages = stages_of(run, units, evaluation_parts);
  Stage launch{"launch", 0, "run", results_stage(run.layout).marks};
  for (const Stage& stage : stages) {
    launch.files.insert(launch.files.end(), stage.files.begin(), stage.files.end());
  }
  stages.push_back(launch);
  return stages;
}

// Whether slurm/stage.sh noted that the stage's last job failed.
bool has_failed(const RunLayout& layout, const Stage& stage) {
  const std::string record = text_or_nothing(layout.slurm_record(stage.job, stage.index));
  return record.find(" exit ") != std::string::npos;
}

bool is_of_models(const Stage& stage) {
  return stage.job == "evaluate" || stage.job == "report" || stage.job == "launch";
}

// While some model is to be trained (on), what is there of all of them is of before.
StageStatus status_of(const RunLayout& layout, const Stage& stage,
                      const std::vector<QueuedJob>& queue, bool trained) {
  if (stage.complete() && (trained || !is_of_models(stage))) return {stage, StageState::done, {}};
  for (const QueuedJob& job : queue) {
    // The one job of `launch` does all stages; and while a stage is queued, so is `launch`.
    const bool own = job.stage == stage.job && job.index == stage.index;
    if (own || job.stage == "launch" || stage.job == "launch") {
      return {stage, job.running ? StageState::running : StageState::waiting, job};
    }
  }
  if (has_failed(layout, stage)) return {stage, StageState::failed, {}};
  return {stage, stage.begun() ? StageState::begun : StageState::missing, {}};
}

}  // namespace

std::vector<TrainUnit> units_as_known(Run& run) {
  try {
    const bool in_order =
        run.experiment.data.order == TextOrder::file || order_stage(run.layout).complete();
    if (tokens_stage(run.layout).complete() && in_order) {
      open_tokens(run);
      return units_of(run);
    }
  } catch (const Error& error) {
    log_warning(error.what());
    run.tokens = nullptr;
  }
  std::vector<TrainUnit> units = train_units(run.experiment, 1);
  for (TrainUnit& unit : units) {
    if (unit.kind->budget != Budget::expert) unit.train.steps = 0;
  }
  return units;
}

std::string to_string(StageState state) {
  switch (state) {
    case StageState::done:
      return "done";
    case StageState::running:
      return "running";
    case StageState::waiting:
      return "waiting";
    case StageState::failed:
      return "failed";
    case StageState::begun:
      return "begun";
    case StageState::missing:
      return "missing";
  }
  return "";
}

std::string slurm_run_id(const RunLayout& layout) {
  const std::string text = text_or_nothing(layout.slurm_id());
  return text.substr(0, text.find_first_of(" \n"));
}

RunStatus run_status(Run run, const std::vector<QueuedJob>& queue, int64_t evaluation_parts) {
  for (const QueuedJob& job : queue) {
    if (job.stage == "evaluate") evaluation_parts = std::max<int64_t>(1, job.parts);
  }
  RunStatus status;
  const std::vector<TrainUnit> units = units_as_known(run);
  const bool trained = std::ranges::all_of(
      units, [&](const TrainUnit& unit) { return unit_stage(run.layout, unit).complete(); });
  int64_t cells = 0, evaluated = 0;
  for (const Stage& stage : stages_and_launch(run, units, evaluation_parts)) {
    status.stages.push_back(status_of(run.layout, stage, queue, trained));
    if (stage.job != "evaluate") continue;
    cells += std::ssize(stage.marks);
    evaluated += stage.marks_there();
  }
  status.models = training_progress(run, units);
  if (run.tokens) {
    status.progress["prepare"] =
        human_count(static_cast<double>(run.tokens->info().num_tokens)) + " tokens";
  }
  status.progress["route"] =
      fmt::format("{} of {} rounds", last_round(run.layout), run.experiment.mixture.rounds);
  status.progress["evaluate"] = fmt::format("{} of {} cells", evaluated, cells);
  return status;
}

std::string hash_of_progress(const RunLayout& layout, const Stage& stage) {
  std::vector<std::string> lines;
  const auto add = [&](const fs::path& file) {
    std::error_code error;
    const std::string name = file.filename().string();
    if (name.starts_with(".") || is_log(file)) return;
    if (fs::is_symlink(file, error) || !fs::is_regular_file(file, error)) return;
    lines.push_back(fmt::format("{} {}", file.lexically_relative(layout.root).string(),
                                fs::file_size(file, error)));
  };
  for (const fs::path& path : stage.files) {
    std::error_code error;
    add(path);
    fs::recursive_directory_iterator entry(path, error);
    for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
      if (is_log(entry->path())) entry.disable_recursion_pending();
      add(entry->path());
    }
  }
  std::sort(lines.begin(), lines.end());
  return hash_text(fmt::format("{}", fmt::join(lines, "\n")));
}

}  // namespace smalltalk
