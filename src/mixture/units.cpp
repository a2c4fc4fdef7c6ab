#include "smalltalk/mixture/units.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "smalltalk/core/error.hpp"
#include "smalltalk/core/log.hpp"
#include "smalltalk/core/random.hpp"
#include "smalltalk/core/run_folder.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/lm/trainer.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

std::vector<TrainUnit> train_units(const Experiment& experiment, int64_t num_sequences) {
  const int64_t experts = experiment.mixture.experts;
  std::vector<TrainUnit> units;
  for (int e = 0; e < static_cast<int>(experts); ++e) {
    units.push_back(
        {fmt::format("experts/{}", e), "mixture", e, Rows::shard, experiment.expert_train});
  }
  const double flops = mixture_flops(experiment, num_sequences).total();
  const auto dense = [&](const std::string& name, int64_t batch, double lr) {
    TrainUnit unit{"baselines/" + name, name, -1, Rows::all, experiment.expert_train};
    unit.train.batch_size = batch;
    unit.train.steps = dense_steps(experiment, batch, flops);
    if (lr > 0) unit.train.lr = lr;
    // The schedule keeps its shape: warm-up is the same share of the steps.
    unit.train.warmup_steps =
        experiment.expert_train.warmup_steps * unit.train.steps / experiment.expert_train.steps;
    units.push_back(unit);
  };
  const BaselineConfig& baselines = experiment.baselines;
  if (baselines.dense) dense("dense", experiment.expert_train.batch_size, baselines.dense_lr);
  if (baselines.dense_large_batch) {
    dense("dense_large_batch", experiment.expert_train.batch_size * experts,
          baselines.dense_large_batch_lr);
  }
  if (baselines.random_shards) {
    for (int e = 0; e < static_cast<int>(experts); ++e) {
      units.push_back({fmt::format("baselines/random_shards/{}", e), "random_shards", e,
                       Rows::random_shard, experiment.expert_train});
    }
  }
  return units;
}

double unit_flops(const Experiment& experiment, const TrainUnit& unit) {
  return static_cast<double>(unit.train.steps) *
         train_flops(experiment.expert_model, unit.train.batch_size, experiment.data.seq_length);
}

bool unit_complete(const RunLayout& layout, const TrainUnit& unit) {
  return fs::exists(layout.trained_mark(unit.name));
}

namespace {

std::vector<uint64_t> unit_sequences(const RunLayout& layout, const TrainUnit& unit,
                                     const Provenance& provenance) {
  if (unit.rows == Rows::all) return {};
  const fs::path path = unit.rows == Rows::shard ? layout.shards() : layout.random_shards();
  const Shards shards = read_shards(path);
  for (const auto* key : {"tokens", "routing"}) {
    const auto expected = provenance.find(key);
    const auto found = shards.provenance.find(key);
    if (expected != provenance.end() &&
        (found == shards.provenance.end() || found->second != expected->second)) {
      throw Error(fmt::format("{} was made from other {}: start again in a new run folder",
                              path.string(), key));
    }
  }
  if (unit.expert >= shards.num_experts()) {
    throw Error(fmt::format("{} holds {} shards, there is no expert {}", path.string(),
                            shards.num_experts(), unit.expert));
  }
  const auto mine = shards.of_expert(unit.expert);
  return {mine.begin(), mine.end()};
}

}  // namespace

void train_unit(const Experiment& experiment, std::shared_ptr<const TokenFile> tokens,
                const RunLayout& layout, const TrainUnit& unit, const HostCollectives& group,
                const Provenance& provenance, const std::function<void()>& before_complete) {
  if (unit_complete(layout, unit)) {
    log_info(fmt::format("{} is complete", unit.name));
    return;
  }
  const fs::path folder = layout.model(unit.name);
  const int64_t seq_length = experiment.data.seq_length;
  // The control differs from the experts in its shards alone: same weights, same keys of the order.
  const auto index = static_cast<uint64_t>(unit.expert + 1);  // 0: dense
  std::map<std::string, std::string> metadata(provenance.begin(), provenance.end());
  metadata["experiment"] = experiment_hash(experiment);
  metadata["unit"] = unit.name;
  metadata["smalltalk.seq_length"] = std::to_string(seq_length);

  Transformer model(experiment.expert_model, experiment.device,
                    derive_seed(experiment.seed, "expert init", index));
  TrainOptions options;
  options.name = unit.name;
  options.folder = folder;
  options.provenance = metadata;
  options.group = group;
  options.nccl_rendezvous = (folder / "rendezvous").string();
  Trainer trainer(model, unit.train, options);
  const int64_t resumed = trainer.resume();
  if (resumed > 0) log_info(fmt::format("{} goes on from step {}", unit.name, resumed));
  const RowSource rows =
      shuffled_rows(tokens, unit_sequences(layout, unit, provenance), seq_length, seq_length + 1,
                    derive_seed(experiment.seed, "expert order", index));
  const TrainSummary summary = trainer.run(rows, unit.train.steps);

  if (group.rank == 0) {
    model.save(folder, metadata);
    if (before_complete) before_complete();
    const nlohmann::json done = {{"unit", unit.name},
                                 {"steps", summary.steps},
                                 {"tokens", summary.tokens},
                                 {"batch_size", unit.train.batch_size},
                                 {"lr", unit.train.lr},
                                 {"last_loss", summary.last_loss},
                                 {"train_flops", unit_flops(experiment, unit)},
                                 {"seconds", summary.seconds}};
    write_text_atomically(layout.trained_mark(unit.name), done.dump(2) + "\n");
    fs::remove(folder / "checkpoint.safetensors");  // the model is whole; a rerun has nothing to do
  }
  group.barrier();
}

}  // namespace smalltalk
