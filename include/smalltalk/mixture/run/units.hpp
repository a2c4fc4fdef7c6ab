// The models that a run trains after its shards are written, as values: which sequences, how many
// steps, which seeds, which folder. Experts, the dense baselines and the controls (the same experts
// on other shards) all go through one function.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/mixture/run/kinds.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

struct TrainUnit {
  std::string name;                 // its folder below the run: "experts/2", "baselines/dense"
  const ModelKind* kind = nullptr;  // the model that it is part of, or all of
  int expert = -1;                  // which shard, if there is one for each expert
  TrainConfig train;                // steps, batch and learning rate of this unit
  int64_t dense_steps = 0;          // the first of them, in which it is no more than an expert yet

  // Whether a checkpoint of this step is one on its way, and of the model itself.
  bool passes(int64_t step) const { return step > dense_steps && step < train.steps; }
};

// Experts first, then what else the experiment asks for. Dense models and Lory get steps until
// their training FLOPs are at least training_budget().
std::vector<TrainUnit> train_units(const Experiment& experiment, int64_t num_sequences);

// A model and all of its units: a mixture's experts, or the one of a dense model.
struct TrainedModel {
  const ModelKind* kind = nullptr;
  std::vector<const TrainUnit*> units;
};
// In the units' order; they must outlive it.
std::vector<TrainedModel> models_of(const std::vector<TrainUnit>& units);

// Of the shards that the experts began with; before the first begins, of the training text, which
// may have grown since. REQUIRES the training tokens to be there, open or not.
int64_t sharded_sequences(const Run& run);
// Those of such a run: the dense models train as long as it takes this mixture.
std::vector<TrainUnit> units_of(const Run& run);
// One of them by name; Error naming the known ones.
const TrainUnit& find_unit(const std::vector<TrainUnit>& units, const std::string& name);

// The FLOPs that a unit's training takes.
double unit_flops(const Experiment& experiment, const TrainUnit& unit);

// Of the keys that decide how a unit is trained, beside its shards and its schedule. Its model and
// its checkpoints name it, and their schedule.
std::string training_hash(const Experiment& experiment, const TrainUnit& unit);

// The shard file with this content: `link` or another one of the run. Empty if there is none.
std::filesystem::path find_shards(const RunLayout& layout, const std::filesystem::path& link,
                                  const std::string& content_hash);

// Trains a unit from its checkpoint, if there is one, to its last step, and saves the model;
// training.json comes last and marks it complete. A complete unit is left alone. A checkpoint of
// another schedule will do if all steps until it had the rates that they have now, and the one at
// the end of a stable phase is kept for it. All ranks of the group call. `before_complete` runs on
// the group's first rank just before the mark is written. A unit keeps the shard file that it began
// with, even if shards.h5 is made anew. Error: shards made from other tokens (or others than these
// begin with) or other routers; another job trains the unit at this moment. Throws Stopped as
// Trainer::run() does.
void train_unit(const Run& run, const TrainUnit& unit, const HostCollectives& group,
                const std::function<void()>& before_complete = {});

}  // namespace smalltalk
