#include "smalltalk/mixture/run/provenance.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

void require(const fs::path& part, const Provenance& metadata, const std::string& key,
             const std::string& wanted, const std::string& of) {
  const std::string found = value_of(metadata, key);
  if (found == wanted) return;
  if (found.empty()) {
    throw Error(
        fmt::format("{} names no {}: it is of an older version of this program; go on with "
                    "that one, or start in another run folder",
                    part.string(), key));
  }
  throw Error(fmt::format("{} does not belong to this mixture: its {} is {}, that of {} is {}",
                          part.string(), key, found, of, wanted));
}

// The rates of the first steps must be the same, or of all.
void require_schedule(const fs::path& part, const Provenance& metadata, const Schedule& wanted,
                      const std::string& of, std::optional<int64_t> steps = {}) {
  const std::string line = value_of(metadata, "schedule");
  const Schedule own = line.empty() ? Schedule{} : parse_schedule(line);
  if (begin_alike(own, wanted, steps.value_or(std::max(own.steps, wanted.steps)))) return;
  require(part, metadata, "schedule", to_string(wanted), of);
}

}  // namespace

std::string weights_hash(const fs::path& model, int64_t step) {
  const fs::path file = weights_file(model, step);
  const std::string named = value_of(read_safetensors_metadata(file), "xxh3");
  return named.empty() ? hash_file(file) : named;
}

void require_checkpoint(const fs::path& model, int64_t step) {
  const fs::path file = weights_file(model, step);
  if (!fs::exists(file)) {
    throw Error(
        fmt::format("{} is not there: checkpoints of all steps that are multiples of "
                    "expert.keep_every are kept, if it is set while a model is trained",
                    file.string()));
  }
  const Provenance of_model = read_safetensors_metadata(weights_file(model));
  const Provenance of_file = read_safetensors_metadata(file);
  for (const std::string key : {"training", "unit", "seed", "shards"}) {
    const std::string named = value_of(of_file, "provenance." + key);
    require(file, {{key, named}}, key, value_of(of_model, key), weights_file(model).string());
  }
  require_schedule(file, of_file, parse_schedule(value_of(of_model, "schedule")),
                   weights_file(model).string(), step);
}

std::vector<std::string> router_hashes(const Run& run) {
  std::vector<std::string> hashes;
  for (int64_t e = 0; e < run.experiment.mixture.experts; ++e) {
    const fs::path weights = weights_file(run.layout.router(e));
    if (!fs::exists(weights)) {
      throw Error(fmt::format("{} is missing: run route first", weights.string()));
    }
    if (run.tokens) {  // that the routers' work is to go on with
      require(weights, read_safetensors_metadata(weights), "order",
              value_of(run.provenance, "order"), run.layout.order().string());
    }
    hashes.push_back(hash_file(weights));
  }
  return hashes;
}

std::string routers_hash(const Run& run) {
  return hash_text(fmt::format("{}", fmt::join(router_hashes(run), ",")));
}

MixtureParts require_one_mixture(const Run& run, const std::vector<TrainUnit>& units) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
  MixtureParts parts;
  const std::string asked_for = layout.experiment().string();
  parts.experiment = experiment_hash(experiment);
  parts.tokenizer = Tokenizer(layout.tokenizer()).hash();
  if (experiment.has_mixture()) parts.routers = routers_hash(run);
  const fs::path first =
      weights_file(layout.model(experiment.has_mixture() ? router_name(0) : units.at(0).name));
  const Provenance of_first = read_safetensors_metadata(first);
  const std::string order = value_of(of_first, "order");
  if (!experiment.has_mixture()) parts.tokens = value_of(of_first, "tokens");
  for (int64_t e = 0; e < experiment.mixture.experts; ++e) {
    const fs::path router = weights_file(layout.router(e));
    const Provenance metadata = read_safetensors_metadata(router);
    require(router, metadata, "tokenizer", parts.tokenizer, layout.tokenizer().string());
    require(router, metadata, "routing", part_hash(experiment, Part::routing), asked_for);
    require(router, metadata, "router", std::to_string(e), "its folder");
    require(router, metadata, "order", order, first.string());
  }
  for (const TrainUnit& unit : units) {
    const fs::path model = weights_file(layout.model(unit.name));
    const Provenance metadata = read_safetensors_metadata(model);
    require(model, metadata, "training", training_hash(experiment, unit), asked_for);
    require_schedule(model, metadata, unit.train.schedule(), asked_for);
    require(model, metadata, "tokenizer", parts.tokenizer, layout.tokenizer().string());
    require(model, metadata, "unit", unit.name, "its folder");
    require(model, metadata, "order", order, first.string());
    parts.models[unit.name] = weights_hash(layout.model(unit.name));
    if (unit.kind->rows != Rows::shard) continue;
    if (parts.shards.empty()) {
      parts.shards = value_of(metadata, "shards");
      parts.tokens = value_of(metadata, "tokens");
    }
    require(model, metadata, "shards", parts.shards, units[0].name);
  }
  if (!experiment.has_mixture()) return parts;
  const fs::path file = find_shards(layout, layout.shards(), parts.shards);
  if (file.empty()) {
    throw Error(fmt::format("the shards {} that the experts were trained on are no longer in {}",
                            parts.shards, layout.shards_folder().string()));
  }
  const Provenance shards = read_shard_info(file).provenance;
  require(file, shards, "routers", parts.routers, layout.routers_folder().string());
  require(file, shards, "tokenizer", parts.tokenizer, layout.tokenizer().string());
  parts.prefix_tokens = std::stoll(value_of(shards, "prefix_tokens"));
  return parts;
}

}  // namespace smalltalk
