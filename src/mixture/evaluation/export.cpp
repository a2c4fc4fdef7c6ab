#include "smalltalk/mixture/evaluation/export.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "mixture/evaluation/modeling_lory.hpp"
#include "mixture/evaluation/provenance_json.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/write_lock.hpp"
#include "smalltalk/data/prepare.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/merge_experts.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/row_routing.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/model/transformer.hpp"
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

// Writes the model in `from` to `to`, merged for this text. Returns what it was merged by, for
// mixture.json.
nlohmann::json write_merged(const Run& run, const fs::path& from,
                            const std::vector<std::string>& text, const fs::path& to) {
  const DataConfig& data = run.experiment.data;
  const int64_t length = data.seq_length;
  const fs::path scratch = to / "text";
  PrepareOptions options;
  options.inputs = text;
  options.tokenizer = run.layout.tokenizer();
  options.out = scratch / "tokens.h5";
  options.fields = {data.text_key, data.domain_key, data.lines};
  options.max_bad_fraction = data.max_bad_fraction;
  std::string hash;
  try {
    hash = prepare_tokens(options).info.content_hash;
  } catch (const Error& error) {
    throw Error(fmt::format("the text to merge for: {}", error.what()));
  }
  const auto tokens = std::make_shared<const TokenFile>(options.out);
  const int64_t sequences = tokens->num_sequences(length);
  if (sequences < 1) {
    throw Error(fmt::format("the text to merge for ({}) holds less than one sequence of {} tokens",
                            fmt::join(text, ", "), length));
  }
  const Transformer model = Transformer::load(from, run.experiment.device);
  const auto weights =
      mean_routing_weights(model, ordered_rows(tokens, {}, length, length + 1), 0, sequences);
  fs::remove_all(scratch);
  merge_experts(model, weights)
      .save(to, {{"unit", to.filename().string()},
                 {"tokens", hash},
                 {"smalltalk.seq_length", std::to_string(length)}});
  return {{"tokens", hash}, {"sequences", sequences}, {"weights", weights}};
}

}  // namespace

void export_mixture(const Run& run, const fs::path& out,
                    const std::vector<std::string>& merge_for) {
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

  if (!merge_for.empty() && merging.empty()) throw Error("the run has no Lory model to merge");
  for (const std::string& model : models) read_safetensors(weights_file(layout.model(model)));
  fs::path partial = out;
  partial += ".partial";
  fs::remove_all(partial);
  const std::string tokenizer = tokenizer_json(layout.tokenizer());
  const std::string pieces = read_text(layout.tokenizer());
  // Padding by <unk>, which no text has: with the end token transformers warns of an ambiguity.
  const nlohmann::json generation = {
      {"bos_token_id", kEndToken}, {"eos_token_id", kEndToken}, {"pad_token_id", 0}};
  const auto write_tokenizer = [&](const fs::path& to) {
    write_text_atomically(to / "generation_config.json", generation.dump(2) + "\n");
    write_text_atomically(to / "tokenizer.json", tokenizer);
    write_text_atomically(to / "tokenizer_config.json", tokenizer_config_json(length));
    write_text_atomically(to / "tokenizer.model", pieces);
  };
  const auto write = [&](const std::string& model) {
    const fs::path from = layout.model(model), to = partial / model;
    for (const fs::path& file : {config_file(from), weights_file(from)}) {
      write_atomically(to / file.filename(),
                       [&](const fs::path& temporary) { fs::copy_file(file, temporary); });
    }
    if (merging.contains(model)) add_modeling_file(to);
    write_tokenizer(to);
    if (!merging.contains(model) || merge_for.empty()) return;
    const std::string merged = model + "-merged";
    lock["merged"][merged] = write_merged(run, from, merge_for, partial / merged);
    lock["models"][merged] = weights_hash(partial / merged);
    write_tokenizer(partial / merged);
  };
  try {
    std::ranges::for_each(models, write);
    write_text_atomically(partial / "mixture.json", lock.dump(2) + "\n");
    fs::rename(partial, out);
  } catch (...) {
    fs::remove_all(partial);
    throw;
  }
}

}  // namespace smalltalk
