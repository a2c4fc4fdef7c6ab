#include "smalltalk/mixture/run/changes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// Adds the stage to each change whose key counts for it.
template <typename Counts>
void spoil(std::vector<Change>& changes, const std::string& stage, Counts counts) {
  for (Change& change : changes) {
    if (counts(change.key.key)) change.spoils.push_back(stage);
  }
}

void spoil_part(std::vector<Change>& changes, const Stage& stage, bool begun, Part part) {
  if (begun) spoil(changes, stage.name, [part](const auto& key) { return decides(key, part); });
}

// Units by what they are trained with, and by what their shards are made with. How long a dense
// model trains follows from other keys, too.
void spoil_units(std::vector<Change>& changes, const Run& there, const Run& here) {
  if (!fs::exists(here.layout.tokens("train"))) return;
  const std::vector<TrainUnit> wanted = units_of(here);
  for (const TrainUnit& unit : units_of(there)) {
    const bool asked_for = std::ranges::count(wanted, unit.kind, &TrainUnit::kind) > 0;
    if (!asked_for || !unit_stage(here.layout, unit.name).begun()) continue;
    const auto same = std::ranges::find(wanted, unit.name, &TrainUnit::name);
    const bool other = same == wanted.end() ||
                       recipe_hash(there.experiment, unit) != recipe_hash(here.experiment, *same);
    spoil(changes, unit.name, [&](const std::string& key) {
      const bool by_shards = unit.kind->rows == Rows::shard
                                 ? decides(key, Part::routing)
                                 : unit.kind->rows != Rows::all && key == "mixture.experts";
      const bool by_steps = unit.kind->rows == Rows::all && decides(key, Part::routing);
      return by_shards || (other && (by_steps || decides(key, Part::expert) ||
                                     key.starts_with("baselines.dense_")));
    });
  }
}

}  // namespace

std::vector<Change> changes_of(const Run& run) {
  const RunLayout& layout = run.layout;
  std::vector<Change> changes;
  // A start that failed before it computed anything leaves nothing to protect.
  if (!fs::exists(layout.experiment()) || !fs::exists(layout.tokenizer())) return changes;
  const Run there = open_run(layout.root);
  for (KeyDifference& key : differences(there.experiment, run.experiment)) {
    changes.push_back({std::move(key), {}});
  }
  if (changes.empty()) return changes;
  spoil_part(changes, tokens_stage(layout), true, Part::tokens);
  for (const Stage& stage : {routers_stage(there), shards_stage(there)}) {
    spoil_part(changes, stage, stage.begun(), Part::routing);
  }
  spoil_units(changes, there, run);
  return changes;
}

std::string describe(const std::vector<Change>& changes) {
  std::string text = fmt::format("{:<30} {:<24} {:<24} {}\n", "key", "there", "here", "spoils");
  for (const auto& [key, spoils] : changes) {
    text += fmt::format("{:<30} {:<24} {:<24} {}\n", key.key, key.there, key.here,
                        spoils.empty() ? "nothing" : fmt::format("{}", fmt::join(spoils, ", ")));
  }
  return text;
}

namespace {

void refuse_spoiling(const Run& run, std::vector<Change> changes) {
  std::erase_if(changes, [](const Change& change) { return change.spoils.empty(); });
  if (changes.empty()) return;
  throw Error(
      fmt::format("{} holds what another experiment made, and these keys would have to make "
                  "anew:\n{}Choose another run folder, put the keys back, or delete what is "
                  "spoilt and all that was made from it",
                  run.layout.root.string(), describe(changes)));
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
    const std::vector<Change> changes = changes_of(run);
    refuse_spoiling(run, changes);
    remove_stale_temporaries(layout.root);
    if (!changes.empty()) {
      log_info(fmt::format("{} goes on with these keys changed:\n{}", layout.root.string(),
                           describe(changes)));
    }
    write_text_atomically(layout.experiment(), text);
  });
  if (!makes_stages) lock.reset();
  return lock;
}

}  // namespace smalltalk
