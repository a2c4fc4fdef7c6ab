// status: where a run stands, read from its folder and from Slurm's queue. Computes nothing, needs
// no MPI, and lets nothing that it cannot read stop it.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "jobs.hpp"
#include "slurm_queue.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/write_lock.hpp"
#include "smalltalk/mixture/run/changes.hpp"
#include "smalltalk/mixture/run/run_status.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

struct StatusJob {
  std::string run;
  std::string experiment;
  std::vector<std::string> overrides;
  std::string queue;
  int64_t parts = 1;
  std::string stage;
  int64_t index = -1;
  bool json = false;
  bool tsv = false;
};

Run run_of(const StatusJob& job) {
  const fs::path file = RunLayout{job.run}.experiment();
  if (job.experiment.empty() && !fs::exists(file)) {
    throw Error(
        fmt::format("{} is not there: name the run's experiment with --experiment", file.string()));
  }
  const Run run =
      job.experiment.empty() ? open_run(job.run) : load_run(job.experiment, job.overrides, job.run);
  require_compatible(run);
  return run;
}

std::optional<std::string> read_queue(const std::string& file) {
  if (file.empty()) return ask_squeue();
  if (file == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  return read_text(file);
}

// The jobs that make stages, in the order of the chain, without `launch`.
std::vector<std::string> chain_of(const RunStatus& status) {
  std::vector<std::string> chain;
  for (const StageStatus& row : status.stages) {
    const std::string& job = row.stage.job;
    if (job != "launch" && (chain.empty() || chain.back() != job)) chain.push_back(job);
  }
  return chain;
}

// How many of a job's stages are in each state.
std::array<int64_t, kStageStates.size()> count_states(const RunStatus& status,
                                                      const std::string& job) {
  std::array<int64_t, kStageStates.size()> counts{};
  for (const StageStatus& row : status.stages) {
    if (row.stage.job == job) ++counts[static_cast<size_t>(row.state)];
  }
  return counts;
}

template <class T>
std::string shown(const char* format, const std::optional<T>& value) {
  return value ? fmt::format(fmt::runtime(format), *value) : "-";
}

// The run's jobs in the queue; nothing if the queue is not known.
using Queue = std::optional<std::vector<QueuedJob>>;

// Jobs that Slurm does not know of hold the locks of what they make.
void note_running(RunStatus& status, const RunLayout& layout) {
  bool stages = is_locked(layout.lock("stages"));
  for (StageStatus& row : status.stages) {
    const std::string& job = row.stage.job;
    if (job == "train") {
      const bool begun = row.state == StageState::begun || row.state == StageState::missing;
      if (begun && is_locked(layout.lock(row.stage.name))) row.state = StageState::running;
    } else if (stages && (job == "prepare" || job == "order" || job == "route" || job == "shard") &&
               row.state != StageState::done) {
      row.state = StageState::running;
      stages = false;
    }
  }
}

std::string describe(const RunStatus& status, const Queue& queue) {
  std::string text = fmt::format("{:<9} {:>6}", "stage", "");
  for (const StageState state : kStageStates) text += fmt::format(" {:>8}", to_string(state));
  text += "\n";
  for (const std::string& job : chain_of(status)) {
    text += fmt::format("{:<16}", job);
    for (const int64_t count : count_states(status, job)) {
      text += fmt::format(" {:>8}", count > 0 ? std::to_string(count) : "");
    }
    const auto progress = status.progress.find(job);
    if (progress != status.progress.end()) text += "  " + progress->second;
    text += "\n";
  }
  text += fmt::format("\n{:<28} {:<8} {:>15} {:>9} {:>16} {:>17}  {}\n", "model", "state",
                      "step of steps", "loss", "tokens/s/device", "device-hours left", "job");
  for (const auto& [stage, state, queued] : status.stages) {
    if (stage.job != "train") continue;
    const UnitProgress& model = status.models.at(stage.name);
    text +=
        fmt::format("{:<28} {:<8} {:>15} {:>9} {:>16} {:>17}  {}\n", stage.name, to_string(state),
                    shown("{}", model.step) + " / " + shown("{}", model.steps),
                    shown("{:.4f}", model.loss), shown("{:.0f}", model.tokens_per_second),
                    shown("{:.2f}", model.device_hours_left), queued ? queued->id : "");
  }
  text += fmt::format("\ndevice-hours left: {}\n", shown("{:.2f}", hours_left(status.models)));
  for (const auto& [stage, state, queued] : status.stages) {
    if (!queued || stage.job == "launch") continue;
    if (queued->reason.empty() || queued->reason == "None") continue;
    text += fmt::format("{} {} waits as job {}: {}\n", stage.job, stage.name, queued->id,
                        queued->reason);
  }
  if (!queue) text += "squeue is not here or does not answer: queued jobs are not shown\n";
  return text;
}

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json to_json(const RunStatus& status, const std::string& run, const Queue& queue) {
  Json stages = Json::array();
  for (const std::string& job : chain_of(status)) {
    Json row = {{"stage", job}};
    const auto counts = count_states(status, job);
    for (const StageState state : kStageStates) {
      row[to_string(state)] = counts[static_cast<size_t>(state)];
    }
    const auto progress = status.progress.find(job);
    row["progress"] = progress == status.progress.end() ? "" : progress->second;
    stages.push_back(row);
  }
  Json models = Json::array();
  for (const auto& [stage, state, queued] : status.stages) {
    if (stage.job != "train") continue;
    const UnitProgress& model = status.models.at(stage.name);
    models.push_back({{"model", stage.name},
                      {"state", to_string(state)},
                      {"step", or_null(model.step)},
                      {"steps", or_null(model.steps)},
                      {"loss", or_null(model.loss)},
                      {"tokens_per_second", or_null(model.tokens_per_second)},
                      {"device_hours_left", or_null(model.device_hours_left)},
                      {"job", queued ? Json(queued->id) : Json(nullptr)}});
  }
  return {{"run", run},
          {"queue", queue.has_value()},
          {"stages", stages},
          {"models", models},
          {"device_hours_left", or_null(hours_left(status.models))}};
}

// stage, index, name, state, job, progress; for slurm/submit and slurm/stage.sh.
std::string to_tsv(const RunStatus& status, const RunLayout& layout, const StatusJob& job) {
  std::string text;
  for (const auto& [stage, state, queued] : status.stages) {
    if (!job.stage.empty() && stage.job != job.stage) continue;
    if (job.index >= 0 && stage.index != job.index) continue;
    text +=
        fmt::format("{}\t{}\t{}\t{}\t{}\t{}\n", stage.job, stage.index, stage.name,
                    to_string(state), queued ? queued->id : "-", hash_of_progress(layout, stage));
  }
  return text;
}

void print_status(const StatusJob& job) {
  const Run run = run_of(job);
  Queue queue;
  if (const auto lines = read_queue(job.queue)) {
    queue = parse_queue(*lines, slurm_run_id(run.layout));
  }
  RunStatus status = run_status(run, queue.value_or(std::vector<QueuedJob>()), job.parts);
  if (!job.tsv) note_running(status, run.layout);
  if (job.json) {
    std::cout << to_json(status, job.run, queue).dump() << "\n";
  } else {
    std::cout << (job.tsv ? to_tsv(status, run.layout, job) : describe(status, queue));
  }
  std::cout << std::flush;
}

}  // namespace

void add_status_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("status", "Where a run stands: stages, models, jobs in Slurm");
  auto job = std::make_shared<StatusJob>();
  sub->add_option("run", job->run, "Run folder")->required();
  auto* experiment = sub->add_option(
      "--experiment", job->experiment,
      "Experiment file, for a run that has not begun; default: RUN/experiment.toml");
  sub->add_option("--set", job->overrides, "Override a key of the experiment (repeatable)")
      ->allow_extra_args(false)
      ->needs(experiment);
  auto* json = sub->add_flag("--json", job->json, "Print one JSON line");
  auto* tsv = sub->add_flag("--tsv", job->tsv,
                            "Print a line a Slurm job: stage, index, name, state, job id, and a "
                            "hash of what the stage can go on from");
  json->excludes(tsv);
  sub->add_option("--queue", job->queue,
                  "A file with the lines of squeue, or -, for where squeue is not (a container): "
                  "--noheader --array --format='%i|%K|%T|%r|%k'");
  sub->add_option("--parts", job->parts, "--tsv: the evaluation is to be in so many parts")
      ->check(CLI::PositiveNumber);
  sub->add_option("--stage", job->stage, "--tsv: lines of this stage only")->needs(tsv);
  sub->add_option("--index", job->index, "--tsv: the line of this index only")->needs(tsv);
  sub->footer("  smalltalk status runs/x4");
  sub->callback(
      [&run, job] { run = [job] { return run_alone("status", [&] { print_status(*job); }); }; });
}

}  // namespace smalltalk
