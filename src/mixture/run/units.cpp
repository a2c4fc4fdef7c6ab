#include "smalltalk/mixture/run/units.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "mixture/run/text_or_nothing.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/write_lock.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/lm/train/memory.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// How a model of this kind trains, beside a mixture that takes so many FLOPs.
TrainConfig train_config(const ModelKind& kind, const Experiment& experiment, double flops) {
  TrainConfig train = experiment.expert_train;
  train.tensor_parallel = experiment.lory.tensor_parallel;
  const auto given = [&](auto* key) { return key == nullptr ? 0 : key(experiment); };
  if (given(kind.lr) > 0) train.lr = kind.lr(experiment);
  if (kind.budget == Budget::expert) return train;
  if (kind.budget == Budget::flops_of_large_batch) {
    train.batch_size *= experiment.mixture.experts;
  }
  train.steps = given(kind.steps);
  if (train.steps == 0) {
    train.steps = steps_for(flops, [&](int64_t steps) {
      return kind.train_flops(experiment, train.batch_size, steps);
    });
  }
  // The schedule keeps its shape: warm-up and decay are the same share of the steps.
  for (int64_t TrainConfig::*part : {&TrainConfig::warmup_steps, &TrainConfig::decay_steps}) {
    train.*part = experiment.expert_train.*part * train.steps / experiment.expert_train.steps;
  }
  if (given(kind.warmup_steps) > 0) train.warmup_steps = kind.warmup_steps(experiment);
  return train;
}

// Of training, all starts together, as the rows of a model's log tell. What was computed and lost
// does not count.
double training_seconds(const fs::path& model) {
  constexpr const char* kSeconds = "time_metrics/end_to_end(s)";  // of a step since the row before
  std::istringstream rows(text_or_nothing(metrics_file(model)));
  double seconds = 0;
  int64_t step = 0;
  for (std::string line; std::getline(rows, line);) {
    const auto row = parse_json_row(line);
    if (!row || !row->contains(kSeconds)) continue;  // tells of an outlier
    const int64_t steps = row->at("step").get<int64_t>() - step;
    seconds += row->at(kSeconds).get<double>() * static_cast<double>(steps);
    step += steps;
  }
  return seconds;
}

}  // namespace

std::vector<TrainUnit> train_units(const Experiment& experiment, int64_t num_sequences) {
  const double flops = training_budget(experiment, num_sequences);
  std::vector<TrainUnit> units;
  for (const ModelKind& kind : model_kinds()) {
    const int64_t count = kind.count(experiment);
    if (kind.budget == Budget::rounds || count == 0) continue;
    const TrainConfig train = train_config(kind, experiment, flops);
    const int64_t dense =
        kind.dense_steps == nullptr ? 0 : kind.dense_steps(experiment, train.steps);
    for (int i = 0; i < static_cast<int>(count); ++i) {
      units.push_back({kind.unit(i), &kind, kind.one_for_each_expert ? i : -1, train, dense});
    }
  }
  return units;
}

std::vector<TrainedModel> models_of(const std::vector<TrainUnit>& units) {
  std::vector<TrainedModel> models;
  for (const TrainUnit& unit : units) {
    auto model = std::ranges::find(models, unit.kind, &TrainedModel::kind);
    if (model == models.end()) model = models.insert(model, {unit.kind, {}});
    model->units.push_back(&unit);
  }
  return models;
}

int64_t sharded_sequences(const Run& run) {
  const RunLayout& layout = run.layout;
  for (int64_t e = 0; e < run.experiment.mixture.experts; ++e) {
    const fs::path record = layout.shards_record(expert_name(e));
    if (!fs::exists(record)) continue;
    const fs::path file = find_shards(layout, layout.shards(), read_text(record).substr(0, 16));
    if (!file.empty()) return read_shard_info(file).num_sequences;
  }
  const auto tokens =
      run.tokens ? run.tokens : std::make_shared<const TokenFile>(layout.tokens("train"));
  return tokens->num_sequences(run.experiment.data.seq_length);
}

std::vector<TrainUnit> units_of(const Run& run) {
  return train_units(run.experiment, sharded_sequences(run));
}

const TrainUnit& find_unit(const std::vector<TrainUnit>& units, const std::string& name) {
  std::string known;
  for (const TrainUnit& unit : units) {
    if (unit.name == name) return unit;
    known += (known.empty() ? "" : ", ") + unit.name;
  }
  throw Error(fmt::format("there is no model {} in this experiment; it has: {}", name, known));
}

double unit_flops(const Experiment& experiment, const TrainUnit& unit) {
  return unit.kind->train_flops(experiment, unit.train.batch_size, unit.train.steps);
}

std::string training_hash(const Experiment& experiment, const TrainUnit& unit) {
  Experiment own = experiment;
  own.expert_train = unit.train;
  const std::string hash = part_hash(own, Part::expert);
  if (!unit.kind->own_keys) return hash;
  return hash_text(
      fmt::format("{} {} {}", hash, part_hash(own, *unit.kind->own_keys), unit.dense_steps));
}

fs::path find_shards(const RunLayout& layout, const fs::path& link, const std::string& hash) {
  if (fs::exists(link) && read_shard_info(link).content_hash == hash) return link;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(layout.shards_folder(), error)) {
    if (entry.path().extension() == ".h5" && read_shard_info(entry.path()).content_hash == hash) {
      return entry.path();
    }
  }
  return {};
}

namespace {

fs::path current_shards(const RunLayout& layout, Rows rows) {
  if (rows == Rows::random_shard) return layout.random_shards();
  return rows == Rows::tfidf_shard ? layout.tfidf_shards() : layout.shards();
}

// The shard file that a unit trains on: the current one when it begins, and the same ever after,
// even if the corpus was sharded anew. The group's first rank decides.
fs::path shards_of_unit(const RunLayout& layout, const TrainUnit& unit,
                        const HostCollectives& group) {
  const fs::path link = current_shards(layout, unit.kind->rows);
  const fs::path record = layout.shards_record(unit.name);
  std::string hash(16, ' ');
  if (group.rank == 0) {
    if (fs::exists(record)) {
      hash = read_text(record).substr(0, hash.size());
    } else {
      hash = read_shard_info(link).content_hash;
      write_text_atomically(record, hash + "\n");
    }
  }
  group.broadcast(std::as_writable_bytes(std::span(hash)), 0);
  const fs::path path = find_shards(layout, link, hash);
  if (path.empty()) {
    throw Error(fmt::format(
        "{} began with the shards {} (see its shards.txt), which are no longer "
        "in {}: bring them back, or delete {} to train on the current ones",
        unit.name, hash, layout.shards_folder().string(), layout.model(unit.name).string()));
  }
  if (group.rank == 0 && path != link) {
    log_info(fmt::format("{} keeps the shards that it began with, {}", unit.name, path.string()));
  }
  return path;
}

// Of a complete model.
void tell_of_other_shards(const RunLayout& layout, const TrainUnit& unit) {
  const fs::path link = current_shards(layout, unit.kind->rows);
  const std::string began_with = text_or_nothing(layout.shards_record(unit.name));
  if (began_with.empty() || !fs::exists(link)) return;
  if (began_with.starts_with(read_shard_info(link).content_hash)) return;
  log_warning(fmt::format(
      "{} was trained on other shards than {} holds now, and stays what it is; to train "
      "it on these, delete {}",
      unit.name, link.string(), layout.model(unit.name).string()));
}

// Error: shards made from other tokens (or others than these begin with) or another experiment.
void require_same_origin(const Run& run, const fs::path& path, const ShardInfo& shards) {
  const Provenance& provenance = run.provenance;
  const auto made_from = [&](const std::string& key) { return value_of(shards.provenance, key); };
  const auto refuse = [&](const std::string& key) {
    throw Error(fmt::format("{} was made from other {}: start again in a new run folder",
                            path.string(), key));
  };
  if (provenance.contains("tokens") &&
      !extends(*run.tokens, made_from("tokens"), made_from("num_tokens"))) {
    refuse("tokens");
  }
  if (provenance.contains("routing") && provenance.at("routing") != made_from("routing")) {
    refuse("routing");
  }
}

// A model that was complete is about to be trained on, from a checkpoint that was found to be whole
// and its own: what was made of it as it was goes.
void forget_shorter_training(const RunLayout& layout, const std::string& unit, int64_t from) {
  if (!fs::exists(layout.trained_mark(unit))) return;
  if (from == 0) {
    throw Error(
        fmt::format("{} is trained, by another schedule, and has no checkpoint to be trained "
                    "on from: delete it to train it anew",
                    layout.model(unit).string()));
  }
  fs::remove(layout.trained_mark(unit));
  std::error_code none;
  for (const auto& split : fs::directory_iterator(layout.evaluation_folder(), none)) {
    const std::string name = split.path().filename().string();
    const std::string stem = layout.evaluation(name, unit).stem().string();
    for (const auto& cell : fs::directory_iterator(split.path(), none)) {
      const std::string its = cell.path().stem().string();
      if (its == stem || its.starts_with(stem + "-")) fs::remove(cell.path());
    }
    fs::remove(layout.comparison(name));
  }
  for (const fs::path& file : {layout.results(), layout.report(), layout.task_results()}) {
    fs::remove(file);
  }
}

// How a group's devices train a model of the unit.
TrainConfig fitted(const Experiment& experiment, const TrainUnit& unit, const ModelConfig& model,
                   const HostCollectives& group) {
  TrainConfig train = unit.train;
  if (experiment.device.device != "cuda") return train;
  // The group's first rank decides, whatever the others' devices are.
  if (group.rank == 0) {
    train = fitted_to_device(model, train, experiment.device, experiment.data.seq_length,
                             group.size, device_memory_bytes(experiment.device));
    log_info(fmt::format("{}: micro batches of {} sequences, recompute {}", unit.name,
                         train.micro_batch_size, to_string(train.recompute)));
  }
  group.broadcast(std::as_writable_bytes(std::span(&train.micro_batch_size, 1)), 0);
  group.broadcast(std::as_writable_bytes(std::span(&train.recompute, 1)), 0);
  return train;
}

int64_t newest_checkpoint(const fs::path& model) {
  const std::vector<int64_t> steps = checkpoint_steps(model);
  return steps.empty() ? 0 : steps.front();
}

}  // namespace

void train_unit(const Run& run, const TrainUnit& unit, const HostCollectives& group,
                const std::function<void()>& before_complete) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
  if (first_rank_says(unit_stage(layout, unit).complete(), group)) {
    log_info(fmt::format("{} is complete", unit.name));
    const fs::path weights = weights_file(layout.model(unit.name));
    if (value_of(read_safetensors_metadata(weights), "order") !=
        value_of(run.provenance, "order")) {
      throw Error(
          fmt::format("{} was trained on another order of documents than {}: delete {} to "
                      "train it anew",
                      weights.string(), layout.order().string(), layout.model(unit.name).string()));
    }
    if (group.rank == 0) tell_of_other_shards(layout, unit);
    return;
  }
  const fs::path folder = layout.model(unit.name);
  std::optional<WriteLock> lock;
  if (group.rank == 0) {
    lock.emplace(layout.lock(unit.name), folder.string());
    remove_stale_temporaries(folder);
  }
  const int64_t seq_length = experiment.data.seq_length;
  // A control differs from the experts in its shards alone: same weights, same keys of the order.
  const auto index = static_cast<uint64_t>(unit.expert + 1);  // 0: dense
  std::map<std::string, std::string> metadata(run.provenance.begin(), run.provenance.end());
  metadata["training"] = training_hash(experiment, unit);
  metadata["unit"] = unit.name;
  metadata["smalltalk.seq_length"] = std::to_string(seq_length);
  std::vector<uint64_t> sequences;  // none: all
  if (unit.kind->rows != Rows::all) {
    const fs::path path = shards_of_unit(layout, unit, group);
    const ShardInfo shards = read_shard_info(path);
    require_same_origin(run, path, shards);
    sequences = read_shard(path, unit.expert);
    metadata["shards"] = shards.content_hash;
    // The text may have grown since: it is still the same training.
    metadata["tokens"] = value_of(shards.provenance, "tokens");
  }

  TrainOptions options;
  options.name = unit.name;
  options.folder = folder;
  options.provenance = metadata;
  options.keeps_stable_phase = true;
  options.group = group;
  const RowSource rows = shuffled_rows(run.tokens, std::move(sequences), seq_length, seq_length + 1,
                                       derive_seed(experiment.seed, "expert order", index));
  const uint64_t seed = derive_seed(experiment.seed, "expert init", index);
  // Before it is trained as a dense model for days.
  const ModelConfig whole = unit.kind->model(experiment);
  require_slices(whole, num_slices(whole, unit.train, group.size));
  // One model at a time lies in memory.
  std::optional<Transformer> model;
  std::optional<Trainer> trainer;
  const auto resume = [&](const ModelConfig& config, int64_t dense_steps) {
    trainer.reset();
    options.dense_steps = dense_steps;
    const int64_t slices = num_slices(config, unit.train, group.size);
    model.emplace(config, experiment.device, seed,
                  slices > 1 ? ExpertSlice{group.rank, slices} : ExpertSlice());
    trainer.emplace(*model, fitted(experiment, unit, config, group), options);
    const int64_t step = trainer->resume();
    if (step > 0) log_info(fmt::format("{} goes on from step {}", unit.name, step));
    return step;
  };
  const auto resume_whole = [&] { return resume(unit.kind->model(experiment), unit.dense_steps); };
  const bool begins_dense = first_rank_says(newest_checkpoint(folder) < unit.dense_steps, group);
  int64_t resumed = begins_dense ? 0 : resume_whole();
  if (resumed < unit.dense_steps) {  // or what lay behind is damaged
    resumed = resume(experiment.expert_model, 0);
    if (group.rank == 0) forget_shorter_training(layout, unit.name, resumed);
    trainer->run(rows, unit.dense_steps);
    trainer->checkpoint();
    resume_whole();
  } else if (group.rank == 0) {
    forget_shorter_training(layout, unit.name, resumed);
  }
  const TrainSummary summary = trainer->run(rows, unit.train.steps);

  metadata["schedule"] = to_string(unit.train.schedule());
  trainer->save_model(folder, metadata);
  if (group.rank == 0) {
    if (before_complete) before_complete();
    const nlohmann::json done = {{"unit", unit.name},
                                 {"steps", summary.steps},
                                 {"schedule", to_string(unit.train.schedule())},
                                 {"tokens", summary.tokens},
                                 {"batch_size", unit.train.batch_size},
                                 {"lr", unit.train.lr},
                                 {"last_loss", summary.last_loss},
                                 {"train_flops", unit_flops(experiment, unit)},
                                 {"seconds", training_seconds(folder)}};
    write_text_atomically(layout.trained_mark(unit.name), done.dump(2) + "\n");
    trainer->clear_checkpoints();  // the model is whole; only more steps need one of them
  }
  group.barrier();
}

}  // namespace smalltalk
