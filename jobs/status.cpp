// status: where a run stands, read from its folder and from Slurm's queue. Computes nothing, needs
// no MPI, and lets nothing that it cannot read stop it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "jobs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

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

// begun: something is there, and no job that is known of works on it.
enum class State { done, running, waiting, failed, begun, missing };
constexpr std::array<const char*, 6> kStates = {"done",   "running", "waiting",
                                                "failed", "begun",   "missing"};
const char* name_of(State state) { return kStates[static_cast<size_t>(state)]; }

// A job of slurm/submit, or an element of an array.
struct QueuedJob {
  std::string id;
  bool running = false;
  std::string reason;  // why it waits
  std::string stage;
  int64_t index = 0;
  int64_t parts = 1;  // of the evaluation
};

// What one Slurm job has to do.
struct Element {
  Stage stage;
  State state = State::missing;
  const QueuedJob* job = nullptr;
};

struct Training {
  std::optional<int64_t> step, steps;
  std::optional<double> loss, tokens_per_second, device_hours_left;
};

struct Status {
  fs::path run;
  bool queue_known = false;  // no: there is no squeue, or it does not answer
  std::vector<QueuedJob> queue;
  std::vector<Element> elements;
  std::map<std::string, Training> models;
  std::map<std::string, std::string> progress;  // of a stage, in words
};

std::vector<std::string> split(const std::string& line, char separator, size_t most) {
  std::vector<std::string> fields;
  size_t at = 0;
  while (fields.size() + 1 < most) {
    const size_t end = line.find(separator, at);
    if (end == std::string::npos) break;
    fields.push_back(line.substr(at, end - at));
    at = end + 1;
  }
  fields.push_back(line.substr(at));
  return fields;
}

std::optional<int64_t> integer(const std::string& text) {
  try {
    return std::stoll(text);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

// slurm/submit asks for the same lines.
constexpr const char* kSqueue =
    "timeout 15 squeue --noheader --array --me --format='%i|%K|%T|%r|%k' 2>/dev/null";

std::optional<std::string> ask_squeue() {
  FILE* pipe = ::popen(kSqueue, "r");
  if (pipe == nullptr) return std::nullopt;
  std::string text;
  std::array<char, 4096> buffer{};
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    text.append(buffer.data(), count);
  }
  if (::pclose(pipe) != 0) return std::nullopt;
  return text;
}

// The jobs of the run with this id, whose comment is smalltalk:ID:STAGE:OFFSET:PARTS.
std::vector<QueuedJob> parse_queue(const std::string& text, const std::string& run_id) {
  std::vector<QueuedJob> jobs;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::vector<std::string> fields = split(line, '|', 5);
    if (fields.size() < 5) continue;
    const std::vector<std::string> comment = split(fields[4], ':', 5);
    if (comment.size() < 5 || comment[0] != "smalltalk" || comment[1] != run_id) continue;
    static const std::vector<std::string> kWaiting = {"PENDING", "REQUEUED", "REQUEUE_HOLD",
                                                      "REQUEUE_FED", "SPECIAL_EXIT"};
    QueuedJob job{fields[0], true, "", comment[2], 0, integer(comment[4]).value_or(1)};
    if (std::find(kWaiting.begin(), kWaiting.end(), fields[2]) != kWaiting.end()) {
      job.running = false;
      job.reason = fields[3];
    }
    // Of a single job the array index is "N/A".
    job.index = integer(fields[1]).value_or(0) + integer(comment[3]).value_or(0);
    jobs.push_back(job);
  }
  return jobs;
}

std::string text_or_nothing(const fs::path& file) {
  try {
    return read_text(file);
  } catch (const Error&) {
    return {};
  }
}

std::string first_word(const std::string& text) {
  return text.substr(0, text.find_first_of(" \n"));
}

// The last object of a JSON-lines file that has the key; null if there is none. Lines may be
// broken.
Json last_row(const fs::path& file, const std::string& key) {
  constexpr std::streamoff kTail = 1 << 16;  // metrics of a long training are large
  std::ifstream in(file, std::ios::binary | std::ios::ate);
  if (!in) return nullptr;
  in.seekg(std::max<std::streamoff>(0, in.tellg() - kTail));
  Json last = nullptr;
  for (std::string line; std::getline(in, line);) {
    Json row = Json::parse(line, nullptr, false);
    if (row.is_object() && row.contains(key)) last = std::move(row);
  }
  return last;
}

template <class T>
std::optional<T> number(const Json& row, const std::string& key) {
  const auto found = row.is_object() ? row.find(key) : row.end();
  if (found == row.end() || !found->is_number()) return std::nullopt;
  return found->get<T>();
}

// Names and sizes of what a stage can go on from: not its logs, and not what is being written. No
// times, which change where nothing advances.
std::string progress_of(const fs::path& run, const Element& element) {
  std::vector<std::string> lines;
  const auto add = [&](const fs::path& file) {
    std::error_code error;
    const std::string name = file.filename().string();
    if (name.starts_with(".") || is_log(file) || name == RunLayout{}.rendezvous("").filename()) {
      return;
    }
    if (fs::is_symlink(file, error) || !fs::is_regular_file(file, error)) return;
    lines.push_back(
        fmt::format("{} {}", file.lexically_relative(run).string(), fs::file_size(file, error)));
  };
  for (const fs::path& path : element.stage.files) {
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

std::vector<Element> elements_of(const Run& run, const std::vector<TrainUnit>& units,
                                 int64_t parts) {
  std::vector<Element> elements;
  Stage launch{"launch", 0, "run", results_stage(run.layout).marks};
  for (const Stage& stage : stages_of(run, units, parts)) {
    elements.push_back({stage});
    launch.files.insert(launch.files.end(), stage.files.begin(), stage.files.end());
  }
  elements.push_back({launch});
  return elements;
}

void set_state(const RunLayout& layout, const std::vector<QueuedJob>& queue, Element& element) {
  const Stage& stage = element.stage;
  if (stage.complete()) {
    element.state = State::done;
    return;
  }
  for (const QueuedJob& job : queue) {
    // The one job of `launch` does all stages; and while a stage is queued, so is `launch`.
    const bool own = job.stage == stage.job && job.index == stage.index;
    if (own || job.stage == "launch" || stage.job == "launch") {
      element.job = &job;
      element.state = job.running ? State::running : State::waiting;
      return;
    }
  }
  // Written by slurm/stage.sh.
  const std::string start = text_or_nothing(layout.slurm_record(stage.job, stage.index));
  if (start.find(" exit ") != std::string::npos) {
    element.state = State::failed;
  } else if (stage.begun()) {
    element.state = State::begun;
  }
}

Training training_of(const RunLayout& layout, const Experiment& experiment, const TrainUnit& unit) {
  Training training;
  if (unit.train.steps > 0) training.steps = unit.train.steps;
  const Json row = last_row(layout.metrics(unit.name), "throughput(tps)");
  training.step = number<int64_t>(row, "step");
  training.loss = number<double>(row, "loss_metrics/global_avg_loss");
  training.tokens_per_second = number<double>(row, "throughput(tps)");
  const Json done = Json::parse(text_or_nothing(layout.trained_mark(unit.name)), nullptr, false);
  if (const auto steps = number<int64_t>(done, "steps")) training.step = training.steps = steps;
  if (training.steps && training.tokens_per_second > 0.0) {
    const int64_t steps = std::max<int64_t>(0, *training.steps - training.step.value_or(0));
    const int64_t tokens = steps * unit.train.batch_size * experiment.data.seq_length;
    training.device_hours_left = static_cast<double>(tokens) / *training.tokens_per_second / 3600;
  }
  return training;
}

// Models that have not begun are expected to be as fast as those that have, on the mean.
void expect_the_rest(const Experiment& experiment, const std::vector<TrainUnit>& units,
                     std::map<std::string, Training>& models) {
  double sum = 0;
  int64_t known = 0;
  for (const auto& [name, model] : models) {
    if (model.tokens_per_second > 0.0) sum += *model.tokens_per_second, ++known;
  }
  if (known == 0) return;
  for (const TrainUnit& unit : units) {
    Training& model = models[unit.name];
    if (model.device_hours_left || !model.steps) continue;
    model.device_hours_left =
        static_cast<double>(*model.steps * unit.train.batch_size * experiment.data.seq_length) /
        (sum / static_cast<double>(known)) / 3600;
  }
}

Run run_of(const StatusJob& job) {
  const fs::path file = RunLayout{job.run}.experiment();
  if (job.experiment.empty() && !fs::exists(file)) {
    throw Error(
        fmt::format("{} is not there: name the run's experiment with --experiment", file.string()));
  }
  const Run run =
      job.experiment.empty() ? open_run(job.run) : load_run(job.experiment, job.overrides, job.run);
  require_same_experiment(run);
  return run;
}

std::optional<std::string> read_queue(const std::string& file) {
  if (file.empty()) return ask_squeue();
  if (file == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  return read_text(file);
}

Status read_status(const StatusJob& job) {
  Run run = run_of(job);
  const RunLayout& layout = run.layout;
  Status status;
  status.run = layout.root;
  if (const auto text = read_queue(job.queue)) {
    status.queue_known = true;
    status.queue = parse_queue(*text, first_word(text_or_nothing(layout.slurm_id())));
  }

  // While an evaluation is queued, it is in as many parts as it was submitted in.
  int64_t parts = job.parts;
  for (const QueuedJob& queued : status.queue) {
    if (queued.stage == "evaluate") parts = std::max<int64_t>(1, queued.parts);
  }
  // How long the dense models train depends on the tokens.
  std::vector<TrainUnit> units = train_units(run.experiment, 1);
  try {
    if (tokens_stage(layout).complete()) {
      open_tokens(run);
      units = units_of(run);
      status.progress["prepare"] =
          human_count(static_cast<double>(run.tokens->info().num_tokens)) + " tokens";
    }
  } catch (const Error& error) {
    log_warning(error.what());
  }
  if (!run.tokens) {
    for (TrainUnit& unit : units) {
      if (unit.kind->budget != Budget::expert) unit.train.steps = 0;
    }
  }
  status.elements = elements_of(run, units, parts);
  for (Element& element : status.elements) set_state(layout, status.queue, element);
  for (const TrainUnit& unit : units) {
    status.models[unit.name] = training_of(layout, run.experiment, unit);
  }
  expect_the_rest(run.experiment, units, status.models);

  const auto round = number<int64_t>(last_row(layout.routing_log(), "round"), "round");
  status.progress["route"] =
      fmt::format("{} of {} rounds", round.value_or(0), run.experiment.mixture.rounds);
  int64_t cells = 0, evaluated = 0;
  for (const Element& element : status.elements) {
    if (element.stage.job != "evaluate") continue;
    cells += std::ssize(element.stage.marks);
    evaluated += element.stage.marks_there();
  }
  status.progress["evaluate"] = fmt::format("{} of {} cells", evaluated, cells);
  return status;
}

// In the order of the chain, without `launch`, which is all of them.
std::vector<std::string> stages_of(const Status& status) {
  std::vector<std::string> stages;
  for (const Element& element : status.elements) {
    if (element.stage.job == "launch" || (!stages.empty() && stages.back() == element.stage.job))
      continue;
    stages.push_back(element.stage.job);
  }
  return stages;
}

std::array<int64_t, kStates.size()> count_states(const Status& status, const std::string& stage) {
  std::array<int64_t, kStates.size()> counts{};
  for (const Element& element : status.elements) {
    if (element.stage.job == stage) ++counts[static_cast<size_t>(element.state)];
  }
  return counts;
}

std::optional<double> hours_left(const Status& status) {
  double hours = 0;
  for (const auto& [name, model] : status.models) {
    if (!model.device_hours_left) return std::nullopt;
    hours += *model.device_hours_left;
  }
  return hours;
}

template <class T>
std::string shown(const char* format, const std::optional<T>& value) {
  return value ? fmt::format(fmt::runtime(format), *value) : "-";
}

std::string describe(const Status& status) {
  std::string text = fmt::format("{:<9} {:>6}", "stage", "");
  for (const char* state : kStates) text += fmt::format(" {:>8}", state);
  text += "\n";
  for (const std::string& stage : stages_of(status)) {
    const auto counts = count_states(status, stage);
    text += fmt::format("{:<16}", stage);
    for (const int64_t count : counts) {
      text += fmt::format(" {:>8}", count > 0 ? std::to_string(count) : "");
    }
    const auto progress = status.progress.find(stage);
    if (progress != status.progress.end()) text += "  " + progress->second;
    text += "\n";
  }
  text += fmt::format("\n{:<28} {:<8} {:>15} {:>9} {:>16} {:>17}  {}\n", "model", "state",
                      "step of steps", "loss", "tokens/s/device", "device-hours left", "job");
  for (const Element& element : status.elements) {
    if (element.stage.job != "train") continue;
    const Training& model = status.models.at(element.stage.name);
    text += fmt::format(
        "{:<28} {:<8} {:>15} {:>9} {:>16} {:>17}  {}\n", element.stage.name, name_of(element.state),
        shown("{}", model.step) + " / " + shown("{}", model.steps), shown("{:.4f}", model.loss),
        shown("{:.0f}", model.tokens_per_second), shown("{:.2f}", model.device_hours_left),
        element.job == nullptr ? "" : element.job->id);
  }
  text += fmt::format("\ndevice-hours left: {}\n", shown("{:.2f}", hours_left(status)));
  for (const Element& element : status.elements) {
    if (element.job == nullptr || element.stage.job == "launch") continue;
    if (element.job->reason.empty() || element.job->reason == "None") continue;
    text += fmt::format("{} {} waits as job {}: {}\n", element.stage.job, element.stage.name,
                        element.job->id, element.job->reason);
  }
  if (!status.queue_known)
    text += "squeue is not here or does not answer: queued jobs are not shown\n";
  return text;
}

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json to_json(const Status& status) {
  Json stages = Json::array();
  for (const std::string& stage : stages_of(status)) {
    Json row = {{"stage", stage}};
    const auto counts = count_states(status, stage);
    for (size_t i = 0; i < kStates.size(); ++i) row[kStates[i]] = counts[i];
    const auto progress = status.progress.find(stage);
    row["progress"] = progress == status.progress.end() ? "" : progress->second;
    stages.push_back(row);
  }
  Json models = Json::array();
  for (const Element& element : status.elements) {
    if (element.stage.job != "train") continue;
    const Training& model = status.models.at(element.stage.name);
    models.push_back({{"model", element.stage.name},
                      {"state", name_of(element.state)},
                      {"step", or_null(model.step)},
                      {"steps", or_null(model.steps)},
                      {"loss", or_null(model.loss)},
                      {"tokens_per_second", or_null(model.tokens_per_second)},
                      {"device_hours_left", or_null(model.device_hours_left)},
                      {"job", element.job == nullptr ? Json(nullptr) : Json(element.job->id)}});
  }
  return {{"run", status.run.string()},
          {"queue", status.queue_known},
          {"stages", stages},
          {"models", models},
          {"device_hours_left", or_null(hours_left(status))}};
}

// stage, index, name, state, job, progress; for slurm/submit and slurm/stage.sh.
std::string to_tsv(const Status& status, const StatusJob& job) {
  std::string text;
  for (const Element& element : status.elements) {
    if (!job.stage.empty() && element.stage.job != job.stage) continue;
    if (job.index >= 0 && element.stage.index != job.index) continue;
    text += fmt::format("{}\t{}\t{}\t{}\t{}\t{}\n", element.stage.job, element.stage.index,
                        element.stage.name, name_of(element.state),
                        element.job == nullptr ? "-" : element.job->id,
                        progress_of(status.run, element));
  }
  return text;
}

}  // namespace

void add_status_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("status", "Where a run stands: stages, models, jobs in Slurm");
  auto job = std::make_shared<StatusJob>();
  sub->add_option("run", job->run, "Run folder")->required();
  sub->add_option("--experiment", job->experiment,
                  "Experiment file, for a run that has not begun; default: RUN/experiment.toml");
  sub->add_option("--set", job->overrides, "Override a key of the experiment (repeatable)")
      ->allow_extra_args(false);
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
  sub->add_option("--stage", job->stage, "--tsv: lines of this stage only");
  sub->add_option("--index", job->index, "--tsv: the line of this index only");
  sub->footer("  smalltalk status runs/x4");
  sub->callback([&run, job] {
    run = [job] {
      return run_alone("status", [&] {
        const Status status = read_status(*job);
        std::cout << (job->json  ? to_json(status).dump() + "\n"
                      : job->tsv ? to_tsv(status, *job)
                                 : describe(status))
                  << std::flush;
      });
    };
  });
}

}  // namespace smalltalk
