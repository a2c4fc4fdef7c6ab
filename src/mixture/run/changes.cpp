#include "smalltalk/mixture/run/changes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// Adds the stage to each change whose key counts for it.
template <typename Counts>
void spoil(Changes& changes, const std::string& stage, Counts counts) {
  for (Change& change : changes.keys) {
    if (counts(change.key.key) && std::ranges::count(change.spoils, stage) == 0) {
      change.spoils.push_back(stage);
    }
  }
}

void spoil_part(Changes& changes, const Stage& stage, bool begun, Part part) {
  if (begun) spoil(changes, stage.name, [part](const auto& key) { return decides(key, part); });
}

// The step from which what is there of a unit can be trained by this schedule, without losing more
// than the end of a stable phase is made to lose; 0: nothing is there. None: it cannot.
std::optional<int64_t> trained_on_from(const Run& run, const TrainUnit& unit, int64_t complete) {
  const fs::path folder = run.layout.model(unit.name);
  const Schedule here = unit.train.schedule();
  // A dense model's order of training is that of all of the text.
  const std::string text =
      unit.kind->rows == Rows::all ? training_tokens(run)->info().content_hash : "";
  int64_t newest = complete;
  for (const int64_t step : checkpoint_steps(folder)) {
    Provenance metadata;
    try {
      metadata = read_safetensors_metadata(weights_file(folder, step));
    } catch (const Error&) {  // damaged: training passes it over, too
      continue;
    }
    newest = std::max(newest, step);
    const std::string line = value_of(metadata, "schedule");
    const bool other_text = !text.empty() && value_of(metadata, "provenance.tokens") != text;
    if (line.empty() || other_text) continue;
    const Schedule own = parse_schedule(line);
    if (!begin_alike(own, here, step)) continue;
    const bool longer = step == own.end_of_stable_phase() && here.steps > own.steps;
    return step == newest || longer ? std::optional(step) : std::nullopt;
  }
  return newest == 0 ? std::optional<int64_t>(0) : std::nullopt;
}

// Units by their schedules, whatever the folder's experiment says: a baseline may have been left
// out for a while.
void look_at_schedules(Changes& changes, const Run& here, const std::vector<TrainUnit>& before,
                       const std::vector<TrainUnit>& wanted) {
  for (const TrainUnit& unit : wanted) {
    const Stage stage = unit_stage(here.layout, unit);
    if (!stage.begun() || stage.complete()) continue;
    const auto old = std::ranges::find(before, unit.name, &TrainUnit::name);
    const bool other_schedule =
        old == before.end() || to_string(old->train.schedule()) != to_string(unit.train.schedule());
    const bool marked = stage.marks_there() > 0;
    if (!marked && !other_schedule) continue;  // goes on as it was
    if (changes.spoils(unit.name)) continue;
    const TrainedMark mark = read_trained_mark(here.layout.trained_mark(unit.name));
    const auto from =
        trained_on_from(here, unit, marked ? mark.steps.value_or(unit.train.steps) : 0);
    if (from) {
      if (*from > 0) changes.trained_on.push_back({unit.name, *from, unit.train.steps});
      continue;
    }
    const bool dense = unit.kind->rows == Rows::all;
    const bool lory = unit.kind->own_keys == Part::lory;
    spoil(changes, unit.name, [&](const std::string& key) {
      if (key.starts_with("expert.") && decides(key, Part::schedule)) return true;
      if (decides(key, Part::schedule)) return dense && key.starts_with("lory.") == lory;
      return dense && decides(key, Part::routing);
    });
    if (!changes.spoils(unit.name)) changes.stuck.push_back(unit.name);
  }
}

// Units by what they are trained with, and by what their shards are made with.
void look_at_units(Changes& changes, const Run& there, const Run& here) {
  if (!fs::exists(here.layout.tokens("train"))) return;
  const std::vector<TrainUnit> before = units_of(there), wanted = units_of(here);
  for (const TrainUnit& unit : before) {
    const bool asked_for = std::ranges::count(wanted, unit.kind, &TrainUnit::kind) > 0;
    if (!asked_for || !unit_stage(here.layout, unit).begun()) continue;
    const auto same = std::ranges::find(wanted, unit.name, &TrainUnit::name);
    const bool other = same == wanted.end() || training_hash(there.experiment, unit) !=
                                                   training_hash(here.experiment, *same);
    spoil(changes, unit.name, [&](const std::string& key) {
      const bool by_shards = unit.kind->rows == Rows::shard
                                 ? decides(key, Part::routing)
                                 : unit.kind->rows != Rows::all && key == "mixture.experts";
      if (by_shards || !other) return by_shards;
      if (decides(key, Part::expert)) return true;
      // A share of other steps is dense, or what decides nothing of an expert is another.
      const bool longer = same != wanted.end() && same->dense_steps != unit.dense_steps;
      return unit.kind->own_keys &&
             (decides(key, *unit.kind->own_keys) || (longer && decides(key, Part::schedule)));
    });
  }
  look_at_schedules(changes, here, before, wanted);
}

}  // namespace

bool Changes::spoil() const {
  return !stuck.empty() ||
         std::ranges::any_of(keys, [](const Change& change) { return !change.spoils.empty(); });
}

bool Changes::spoils(const std::string& stage) const {
  return std::ranges::any_of(
      keys, [&](const Change& change) { return std::ranges::count(change.spoils, stage) > 0; });
}

Changes changes_of(const Run& run) {
  const RunLayout& layout = run.layout;
  Changes changes;
  // A start that failed before it computed anything leaves nothing to protect.
  if (!fs::exists(layout.experiment()) || !fs::exists(layout.tokenizer())) return changes;
  const Run there = open_run(layout.root);
  for (KeyDifference& key : differences(there.experiment, run.experiment)) {
    changes.keys.push_back({std::move(key), {}});
  }
  spoil_part(changes, tokens_stage(layout), true, Part::tokens);
  if (there.experiment.data.packing == Packing::documents) {
    spoil(changes, tokens_stage(layout).name,
          [](const std::string& key) { return key == "data.seq_length"; });
  }
  for (const Stage& stage : {routers_stage(there), shards_stage(there)}) {
    spoil_part(changes, stage, stage.begun(), Part::routing);
  }
  look_at_units(changes, there, run);
  return changes;
}

namespace {

bool names_text(const std::string& key) {
  return std::ranges::any_of(
      kSplits, [&](const char* split) { return key == fmt::format("data.{}", split); });
}

}  // namespace

std::string describe(const Changes& changes) {
  std::string text;
  if (!changes.keys.empty()) {
    text = fmt::format("{:<30} {:<24} {:<24} {}\n", "key", "there", "here", "spoils");
  }
  for (const auto& [key, spoils] : changes.keys) {
    const bool of_text = names_text(key.key);
    const std::string nothing = of_text ? "nothing, if the text is the same" : "nothing";
    text += fmt::format("{:<30} {:<24} {:<24} {}\n", key.key, key.there, key.here,
                        spoils.empty() ? nothing : fmt::format("{}", fmt::join(spoils, ", ")));
  }
  for (const auto& [unit, from, to] : changes.trained_on) {
    text += fmt::format("{} is trained on from step {} to step {}\n", unit, from, to);
  }
  for (const std::string& unit : changes.stuck) {
    text += fmt::format("{} was trained by another schedule, from which it cannot go on\n", unit);
  }
  return text;
}

namespace {

// What to do about a schedule that cannot go on.
std::string advice(const Run& run, const Changes& changes) {
  const bool schedule = std::ranges::any_of(changes.keys, [](const Change& change) {
    return !change.spoils.empty() && decides(change.key.key, Part::schedule);
  });
  if (!schedule) return "";
  const Run there = open_run(run.layout.root);
  const Decay decay = there.experiment.expert_train.lr_decay;
  if (decay == Decay::cosine || decay == Decay::linear) {
    return ". What expert.lr_decay = cosine or linear has trained cannot be trained on; constant, "
           "wsd and wsd_sqrt can";
  }
  std::string text =
      ". A model can be trained on from a checkpoint whose steps had the same learning rates: such "
      "a one is kept for expert.lr_decay constant, wsd and wsd_sqrt";
  const std::vector<TrainUnit> wanted = units_of(run);
  for (const TrainUnit& before : units_of(there)) {
    const auto unit = std::ranges::find(wanted, before.name, &TrainUnit::name);
    if (unit == wanted.end() || !changes.spoils(unit->name)) continue;
    const std::string key = unit->kind->warmup_steps == nullptr
                                ? ""
                                : fmt::format("baselines.{}_warmup_steps", unit->kind->name);
    if (unit->train.warmup_steps != before.train.warmup_steps && !key.empty()) {
      text += fmt::format("; {} = {} keeps the warm-up of {}, which is else a share of its steps",
                          key, before.train.warmup_steps, unit->name);
    } else if (unit->train.decay_steps > 0 &&
               unit->train.steps - unit->train.decay_steps < before.train.steps) {
      text += fmt::format("; the decay of {} would begin behind step {} of its {}, but it has {}",
                          unit->name, unit->train.steps - unit->train.decay_steps,
                          unit->train.steps, before.train.steps);
    }
  }
  return text;
}

void refuse_spoiling(const Run& run, Changes changes) {
  if (!changes.spoil()) return;
  std::erase_if(changes.keys, [](const Change& change) { return change.spoils.empty(); });
  changes.trained_on.clear();
  throw Error(
      fmt::format("{} holds what another experiment made, and these keys would have to make "
                  "anew:\n{}Choose another run folder, put the keys back ({} has them, and every "
                  "job takes it as its experiment), or delete what is spoilt and all that was made "
                  "from it{}",
                  run.layout.root.string(), describe(changes), run.layout.experiment().string(),
                  advice(run, changes)));
}

}  // namespace

Changes require_compatible(const Run& run) {
  Changes changes = changes_of(run);
  refuse_spoiling(run, changes);
  return changes;
}

std::unique_ptr<WriteLock> claim_run_folder(const Run& run, const HostCollectives& ranks,
                                            Claim claim) {
  const RunLayout& layout = run.layout;
  const bool makes_stages = claim == Claim::makes_stages;
  if (makes_stages) {
    require_writable(layout.root);
  } else if (!fs::exists(layout.experiment())) {
    throw Error(fmt::format("{} is no run folder: `smalltalk prepare` or `launch` makes one",
                            layout.root.string()));
  }
  // Whether the text is the same is not known before it is looked at: prepare_tokens_of() does.
  Experiment noted = run.experiment;
  if (tokens_stage(layout).complete() && fs::exists(layout.experiment())) {
    const DataConfig there = open_run(layout.root).experiment.data;
    noted.data.train = there.train;
    noted.data.validation = there.validation;
    noted.data.test = there.test;
  }
  const std::string text = to_toml(noted);
  const bool differs = first_rank_says(
      !fs::exists(layout.experiment()) || read_text(layout.experiment()) != text, ranks);
  if (!makes_stages && !differs) return nullptr;
  // What the folder's experiment says holds for whoever works on it at the moment.
  auto lock = lock_stages(run, ranks);
  run_together(ranks, [&] {
    if (ranks.rank != 0) return;
    const Changes changes = require_compatible(run);
    if (claim == Claim::reads && !changes.trained_on.empty()) {
      throw Error(
          fmt::format("{} must be trained on first, by launch or train; or leave the keys "
                      "as they are there:\n{}",
                      layout.root.string(), describe(changes)));
    }
    remove_stale_temporaries(layout.root);
    if (!changes.none()) {
      log_info(fmt::format("{} goes on with these changes:\n{}", layout.root.string(),
                           describe(changes)));
    }
    write_text_atomically(layout.experiment(), text);
  });
  if (!makes_stages) lock.reset();
  return lock;
}

}  // namespace smalltalk
