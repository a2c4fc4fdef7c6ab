#include "smalltalk/mixture/evaluation/export.hpp"

#include <fmt/format.h>

#include <set>
#include <string>
#include <vector>

#include "mixture/evaluation/modeling_lory.hpp"
#include "mixture/evaluation/provenance_json.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/write_lock.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// transformers does not know these: its config.json names the file that does.
void add_modeling_file(const fs::path& folder) {
  const fs::path config = config_file(folder);
  auto json = parse_json<nlohmann::ordered_json>(read_text(config), config.string());
  json["auto_map"] = {{"AutoConfig", "modeling_lory.LoryConfig"},
                      {"AutoModelForCausalLM", "modeling_lory.LoryForCausalLM"}};
  write_text_atomically(config, json.dump(2) + "\n");
  write_text_atomically(folder / "modeling_lory.py", kModelingLory);
}

}  // namespace

void export_mixture(const Run& run, const fs::path& out) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
  const fs::path place = fs::absolute(out).lexically_normal();
  create_folder(place.parent_path());
  const WriteLock only_one(place.parent_path() / ("." + place.filename().string() + ".lock"),
                           out.string());
  if (fs::exists(out)) throw Error(out.string() + " exists: export to another folder");
  const int64_t length = experiment.data.seq_length;
  const std::vector<TrainUnit> units = units_of(run);
  nlohmann::json lock = provenance_json(require_one_mixture(run, units));
  std::vector<std::string> models;
  std::set<std::string> merging;
  for (const TrainUnit& unit : units) {
    models.push_back(unit.name);
    if (unit.kind->merges_experts()) merging.insert(unit.name);
  }
  for (int64_t e = 0; e < experiment.mixture.experts; ++e) {
    models.push_back(router_name(e));
    lock["models"][models.back()] = weights_hash(layout.router(e));
  }
  lock.update({{"format", "smalltalk mixture"},
               {"version", 1},
               {"experts", experiment.mixture.experts},
               {"seq_length", length},
               {"begin_token", kEndToken}});

  for (const std::string& model : models) read_safetensors(weights_file(layout.model(model)));
  fs::path partial = out;
  partial += ".partial";
  fs::remove_all(partial);
  const std::string tokenizer = tokenizer_json(layout.tokenizer());
  const std::string pieces = read_text(layout.tokenizer());
  // Padding by <unk>, which no text has: with the end token transformers warns of an ambiguity.
  const nlohmann::json generation = {
      {"bos_token_id", kEndToken}, {"eos_token_id", kEndToken}, {"pad_token_id", 0}};
  for (const std::string& model : models) {
    const fs::path from = layout.model(model), to = partial / model;
    for (const fs::path& file : {config_file(from), weights_file(from)}) {
      write_atomically(to / file.filename(),
                       [&](const fs::path& temporary) { fs::copy_file(file, temporary); });
    }
    if (merging.contains(model)) add_modeling_file(to);
    write_text_atomically(to / "generation_config.json", generation.dump(2) + "\n");
    write_text_atomically(to / "tokenizer.json", tokenizer);
    write_text_atomically(to / "tokenizer_config.json", tokenizer_config_json(length));
    write_text_atomically(to / "tokenizer.model", pieces);
  }
  write_text_atomically(partial / "mixture.json", lock.dump(2) + "\n");
  fs::rename(partial, out);
}

}  // namespace smalltalk
