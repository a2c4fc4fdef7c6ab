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
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// Adds the stage to each change whose key counts for it.
template <typename Counts>
void spoil(Changes& changes, const std::string& stage, Counts counts) {
  for (Change& change : changes.keys) {
    if (counts(change.key.key)) change.spoils.push_back(stage);
  }
}

void spoil_part(Changes& changes, const Stage& stage, bool begun, Part part) {
  if (begun) spoil(changes, stage.name, [part](const auto& key) { return decides(key, part); });
}

// The step from which what is there of a unit can be trained on by another schedule, without losing
// more than the end of a stable phase is made to lose; 0: nothing is there. None: it cannot.
std::optional<int64_t> trained_on_from(const RunLayout& layout, const TrainUnit& there,
                                       const Schedule& here) {
  const fs::path folder = layout.model(there.name);
  int64_t newest = unit_stage(layout, there.name).complete() ? there.train.steps : 0;
  for (const int64_t step : checkpoint_steps(folder)) {
    newest = std::max(newest, step);
    std::string line;
    try {
      line = value_of(read_safetensors_metadata(weights_file(folder, step)), "schedule");
    } catch (const Error&) {  // damaged
    }
    if (line.empty()) continue;
    const Schedule own = parse_schedule(line);
    if (!begin_alike(own, here, step)) continue;
    const bool longer = step == own.end_of_stable_phase() && here.steps > own.steps;
    return step == newest || longer ? std::optional(step) : std::nullopt;
  }
  return newest == 0 ? std::optional<int64_t>(0) : std::nullopt;
}

// Units by what they are trained with, and by what their shards are made with. How long a dense
// model trains follows from other keys, too.
void look_at_units(Changes& changes, const Run& there, const Run& here) {
  if (!fs::exists(here.layout.tokens("train"))) return;
  const std::vector<TrainUnit> wanted = units_of(here);
  for (const TrainUnit& unit : units_of(there)) {
    const bool asked_for = std::ranges::count(wanted, unit.kind, &TrainUnit::kind) > 0;
    if (!asked_for || !unit_stage(here.layout, unit.name).begun()) continue;
    const auto same = std::ranges::find(wanted, unit.name, &TrainUnit::name);
    const bool none = same == wanted.end();
    const bool other_training =
        none || training_hash(there.experiment, unit) != training_hash(here.experiment, *same);
    const bool other_schedule =
        none || to_string(unit.train.schedule()) != to_string(same->train.schedule());
    const auto from = other_schedule && !none
                          ? trained_on_from(here.layout, unit, same->train.schedule())
                          : std::nullopt;
    spoil(changes, unit.name, [&](const std::string& key) {
      const bool by_shards = unit.kind->rows == Rows::shard
                                 ? decides(key, Part::routing)
                                 : unit.kind->rows != Rows::all && key == "mixture.experts";
      const bool by_steps = unit.kind->rows == Rows::all && decides(key, Part::routing);
      return by_shards || (other_training && decides(key, Part::expert)) ||
             (other_schedule && !from && (decides(key, Part::schedule) || by_steps));
    });
    if (from) changes.trained_on.push_back({unit.name, *from, same->train.steps});
  }
}

}  // namespace

bool Changes::spoil() const {
  return std::ranges::any_of(keys, [](const Change& change) { return !change.spoils.empty(); });
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
  if (changes.none()) return changes;
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

std::string describe(const Changes& changes) {
  std::string text = fmt::format("{:<30} {:<24} {:<24} {}\n", "key", "there", "here", "spoils");
  for (const auto& [key, spoils] : changes.keys) {
    text += fmt::format("{:<30} {:<24} {:<24} {}\n", key.key, key.there, key.here,
                        spoils.empty() ? "nothing" : fmt::format("{}", fmt::join(spoils, ", ")));
  }
  for (const auto& [unit, from, to] : changes.trained_on) {
    text += fmt::format("{} is trained on from step {} to step {}\n", unit, from, to);
  }
  return text;
}

namespace {

// What to do about a schedule that cannot go on.
std::string advice(const Changes& changes) {
  const bool schedule = std::ranges::any_of(changes.keys, [](const Change& change) {
    return !change.spoils.empty() && decides(change.key.key, Part::schedule);
  });
  if (!schedule) return "";
  return ". A model can be trained on from a checkpoint whose steps had the same learning rates: "
         "such a one is kept for expert.lr_decay constant, wsd and wsd_sqrt, and of dense models "
         "if baselines.dense_warmup_steps fixes their warm-up, which is else a share of their "
         "steps";
}

void refuse_spoiling(const Run& run, Changes changes) {
  if (!changes.spoil()) return;
  std::erase_if(changes.keys, [](const Change& change) { return change.spoils.empty(); });
  changes.trained_on.clear();
  throw Error(
      fmt::format("{} holds what another experiment made, and these keys would have to make "
                  "anew:\n{}Choose another run folder, put the keys back, or delete what is "
                  "spoilt and all that was made from it{}",
                  run.layout.root.string(), describe(changes), advice(changes)));
}

void make_room_to_train_on(const RunLayout& layout, const Changes& changes) {
  if (changes.trained_on.empty()) return;
  for (const auto& [unit, from, to] : changes.trained_on) {
    fs::remove(layout.trained_mark(unit));
    for (const char* split : {"validation", "test"}) fs::remove(EvalCell{split, unit}.file(layout));
  }
  for (const fs::path& mark : results_stage(layout).marks) fs::remove(mark);
}

}  // namespace

void require_compatible(const Run& run) { refuse_spoiling(run, changes_of(run)); }

std::unique_ptr<WriteLock> claim_run_folder(const Run& run, const HostCollectives& ranks,
                                            bool makes_stages) {
  const RunLayout& layout = run.layout;
  if (makes_stages) {
    require_writable(layout.root);
  } else if (!fs::exists(layout.experiment())) {
    throw Error(fmt::format("{} is no run folder: `smalltalk prepare` or `launch` makes one",
                            layout.root.string()));
  }
  const std::string text = to_toml(run.experiment);
  const bool differs = first_rank_says(
      !fs::exists(layout.experiment()) || read_text(layout.experiment()) != text, ranks);
  if (!makes_stages && !differs) return nullptr;
  // What the folder's experiment says holds for whoever works on it at the moment.
  auto lock = lock_stages(run, ranks);
  run_together(ranks, [&] {
    if (ranks.rank != 0) return;
    const Changes changes = changes_of(run);
    refuse_spoiling(run, changes);
    remove_stale_temporaries(layout.root);
    if (!changes.none()) {
      log_info(fmt::format("{} goes on with these keys changed:\n{}", layout.root.string(),
                           describe(changes)));
    }
    make_room_to_train_on(layout, changes);
    write_text_atomically(layout.experiment(), text);
  });
  if (!makes_stages) lock.reset();
  return lock;
}

}  // namespace smalltalk
