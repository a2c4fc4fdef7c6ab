#include "smalltalk/mixture/run/stages.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "mixture/run/text_or_nothing.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/model/model_folder.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// What cannot be looked at is not there.
bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

}  // namespace

int64_t Stage::marks_there() const { return std::ranges::count_if(marks, is_there); }

TrainedMark read_trained_mark(const fs::path& file) {
  const auto mark = nlohmann::json::parse(text_or_nothing(file), nullptr, false);
  if (!mark.is_object()) return {};
  const auto steps = mark.find("steps"), schedule = mark.find("schedule");
  TrainedMark said;
  if (steps != mark.end() && steps->is_number()) said.steps = steps->get<int64_t>();
  if (schedule != mark.end() && schedule->is_string()) said.schedule = *schedule;
  return said;
}

bool Stage::complete() const {
  if (!std::ranges::all_of(marks, is_there)) return false;
  if (!schedule) return true;
  const TrainedMark mark = read_trained_mark(marks[0]);
  if (mark.schedule.empty()) return mark.steps.value_or(schedule->steps) == schedule->steps;
  const Schedule own = parse_schedule(mark.schedule);
  return own.steps == schedule->steps && begin_alike(own, *schedule, own.steps);
}

bool Stage::begun() const { return std::ranges::any_of(files, is_there); }

Stage tokens_stage(const RunLayout& layout) {
  Stage stage{"prepare", 0, "tokens", {layout.tokenizer()}, {layout.tokens_folder()}};
  for (const char* split : kSplits) stage.marks.push_back(layout.tokens(split));
  return stage;
}

Stage order_stage(const RunLayout& layout) {
  return {"order", 0, "order", {layout.order()}, {layout.order()}};
}

Stage routers_stage(const Run& run) {
  const RunLayout& layout = run.layout;
  Stage stage{"route", 0, "routers"};
  for (int64_t e = 0; e < run.experiment.mixture.experts; ++e) {
    stage.marks.push_back(weights_file(layout.router(e)));
  }
  // Notes on scoring grow while the E-step of a long round does.
  stage.files = {layout.routers_folder(), layout.rounds_folder(), layout.scoring_folder()};
  return stage;
}

Stage shards_stage(const Run& run) {
  const RunLayout& layout = run.layout;
  Stage stage{"shard", 0, "shards", {layout.sharding_report(), layout.shards()}};
  if (run.experiment.baselines.tfidf_shards) stage.marks.push_back(layout.tfidf_shards());
  stage.files = {layout.scores(), layout.shards_folder(), layout.tfidf_folder(),
                 layout.scoring_folder()};
  return stage;
}

Stage unit_stage(const RunLayout& layout, const TrainUnit& unit) {
  Stage stage{"train", 0, unit.name, {layout.trained_mark(unit.name)}, {layout.model(unit.name)}};
  if (unit.train.steps > 0) stage.schedule = unit.train.schedule();
  return stage;
}

Stage evaluation_stage(const RunLayout& layout, const std::vector<EvalCell>& cells, WorkPart part) {
  Stage stage{"evaluate", part.part, fmt::format("part {} of {}", part.part, part.parts)};
  for (int64_t cell = part.part; cell < std::ssize(cells); cell += part.parts) {
    const EvalCell& its = cells[static_cast<size_t>(cell)];
    stage.marks.push_back(its.file(layout));
    stage.files.push_back(its.file(layout));
    stage.files.push_back(layout.scoring_notes(its.name()));
  }
  return stage;
}

Stage results_stage(const RunLayout& layout) {
  return {
      "report", 0, "results", {layout.results(), layout.report()}, {layout.evaluation_folder()}};
}

std::vector<Stage> stages_of(const Run& run, const std::vector<TrainUnit>& units,
                             int64_t evaluation_parts) {
  const RunLayout& layout = run.layout;
  std::vector<Stage> stages = {tokens_stage(layout)};
  if (run.experiment.data.order == TextOrder::similar) stages.push_back(order_stage(layout));
  if (run.experiment.has_mixture()) {
    stages.push_back(routers_stage(run));
    stages.push_back(shards_stage(run));
  }
  int64_t index = 0;
  for (const TrainUnit& unit : units) {
    stages.push_back(unit_stage(layout, unit));
    stages.back().index = index++;
  }
  const std::vector<EvalCell> cells = eval_cells(units);
  for (int64_t part = 0; part < evaluation_parts; ++part) {
    stages.push_back(evaluation_stage(layout, cells, {part, evaluation_parts}));
  }
  stages.push_back(results_stage(layout));
  return stages;
}

void require_trained(const RunLayout& layout, const std::vector<TrainUnit>& units) {
  for (const TrainUnit& unit : units) {
    const Stage stage = unit_stage(layout, unit);
    if (stage.complete()) continue;
    throw Error(fmt::format(
        "{} is not trained {}: run train --model {} first", layout.model(unit.name).string(),
        stage.marks_there() > 0
            ? fmt::format("for the {} steps that are asked for", unit.train.steps)
            : "yet",
        unit.name));
  }
}

void time_stage(const RunLayout& layout, const std::string& name, bool complete,
                const HostCollectives& ranks, const std::function<void()>& body) {
  const double start = now_seconds();
  const auto note = [&] {
    if (ranks.rank != 0 || complete) return;
    const fs::path file = layout.seconds();
    nlohmann::json all =
        fs::exists(file) ? parse_json(read_text(file), file.string()) : nlohmann::json::object();
    all[name] = all.value(name, 0.0) + now_seconds() - start;
    write_text_atomically(file, all.dump(2) + "\n");
  };
  try {
    body();
  } catch (const Stopped&) {
    note();
    throw;
  }
  note();
}

}  // namespace smalltalk
