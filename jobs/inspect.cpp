// inspect: what a file or a run folder holds.
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "jobs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/mixture/run/run_status.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Json describe_tensors(const fs::path& path) {
  Json out = {{"kind", "safetensors"}, {"parameters", 0}};
  Json tensors = Json::array();
  Json metadata = Json::object();
  int64_t parameters = 0;
  const Json header = parse_json<Json>(describe_safetensors(path), path.string());
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      metadata = entry;
      continue;
    }
    int64_t values = 1;
    for (const Json& size : entry.at("shape")) values *= size.get<int64_t>();
    parameters += values;
    tensors.push_back({{"name", name}, {"dtype", entry.at("dtype")}, {"shape", entry.at("shape")}});
  }
  out["parameters"] = parameters;
  out["metadata"] = metadata;
  out["tensors"] = tensors;
  return out;
}

Json describe_rows(const fs::path& path) {
  std::istringstream lines(read_text(path));
  int64_t rows = 0;
  int64_t broken = 0;
  Json last = nullptr;
  for (std::string line; std::getline(lines, line);) {
    std::optional<Json> row = parse_json_row<Json>(line);
    if (!row) {
      ++broken;
      continue;
    }
    ++rows;
    last = std::move(*row);
  }
  Json out = {{"kind", "rows"}, {"rows", rows}};
  if (broken > 0) out["broken_rows"] = broken;
  out["last_row"] = last;
  return out;
}

// null for what is not there: results of another version still print.
Json value_at(const Json& object, const std::string& pointer) {
  const Json::json_pointer where(pointer);
  return object.contains(where) ? object.at(where) : Json(nullptr);
}

Json describe_results(const Json& results) {
  Json models = Json::array();
  for (const auto& [name, model] : results.at("models").items()) {
    models.push_back({{"model", name},
                      {"perplexity", value_at(model, "/perplexity/all")},
                      {"after_prefix", value_at(model, "/perplexity/after_prefix")},
                      {"bits_per_byte", value_at(model, "/bits_per_byte")},
                      {"train_flops", value_at(model, "/train_flops")},
                      {"steps", value_at(model, "/steps")},
                      {"batch_size", value_at(model, "/batch_size")},
                      {"lr", value_at(model, "/lr")},
                      {"train_tokens", value_at(model, "/train_tokens")}});
  }
  return {
      {"kind", "results"},
      {"name", value_at(results, "/name")},
      {"seed", value_at(results, "/seed")},
      {"experts", value_at(results, "/experts")},
      {"purity", value_at(results, "/routing/purity")},
      {"world_bytes_after_shards", value_at(results, "/communication/world_bytes_after_shards")},
      {"models", models}};
}

Json describe_json(const fs::path& path) {
  const Json content = parse_json<Json>(read_text(path), path.string());
  if (content.is_object() && value_at(content, "/models").is_object()) {
    return describe_results(content);
  }
  return {{"kind", "json"}, {"content", content}};
}

Json describe_experiment(const fs::path& path) {
  const Experiment experiment = load_experiment(path, {});
  Experiment visited = experiment;
  Json keys = Json::object();
  visit_fields(visited, [&](const std::string& key, const auto& field, const char*) {
    if constexpr (std::is_enum_v<std::decay_t<decltype(field)>>) {
      keys[key] = to_string(field);
    } else {
      keys[key] = field;
    }
  });
  return {{"kind", "experiment"}, {"hash", experiment_hash(experiment)}, {"keys", keys}};
}

// Which stages are complete, by the files that mark them; the units of a model are one.
Json describe_run(const fs::path& path) {
  Run run = open_run(path);
  const std::vector<TrainUnit> units = units_as_known(run);
  Json stages = Json::array();
  for (const Stage& stage : stages_of(run, units)) {
    std::string name = stage.name;
    if (stage.job == "train") {
      name = units[static_cast<size_t>(stage.index)].kind->stage;
    } else if (stage.job == "evaluate") {
      name = "evaluation";
    }
    if (stages.empty() || stages.back()["stage"] != name) {
      stages.push_back({{"stage", name}, {"complete", true}, {"done", 0}, {"of", 0}});
    }
    Json& row = stages.back();
    row["complete"] = row["complete"].get<bool>() && stage.complete();
    row["done"] = row["done"].get<int64_t>() + stage.marks_there();
    row["of"] = row["of"].get<int64_t>() + std::ssize(stage.marks);
  }
  return {{"kind", "run"},
          {"name", run.experiment.name},
          {"seed", run.experiment.seed},
          {"experts", run.experiment.mixture.experts},
          {"experiment_hash", experiment_hash(run.experiment)},
          {"stages", stages}};
}

Json describe(const fs::path& path) {
  if (!fs::exists(path)) throw Error(path.string() + ": no such file or folder");
  if (fs::is_directory(path)) {
    if (fs::exists(RunLayout{path}.experiment())) return describe_run(path);
    if (fs::exists(weights_file(path))) return describe_tensors(weights_file(path));
    throw Error(path.string() +
                ": neither a run folder (no experiment.toml) nor a model's folder "
                "(no model.safetensors)");
  }
  const std::string ending = path.extension().string();
  if (ending == ".h5") return Json::parse(describe_hdf5(path));
  if (ending == ".safetensors") return describe_tensors(path);
  if (ending == ".jsonl") return describe_rows(path);
  if (ending == ".json") return describe_json(path);
  if (ending == ".toml") return describe_experiment(path);
  if (ending == ".model") {
    const Tokenizer tokenizer(path);
    return {
        {"kind", "tokenizer"}, {"vocab_size", tokenizer.vocab_size()}, {"hash", tokenizer.hash()}};
  }
  throw Error(path.string() +
              ": not a file of this suite; known are run folders, .h5, "
              ".safetensors, .jsonl, .json, .toml, .model");
}

std::string plain(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "-";
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_number_float()) return fmt::format("{:.6g}", value.get<double>());
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool is_table(const Json& value) {
  return value.is_array() && !value.empty() &&
         std::all_of(value.begin(), value.end(), [](const Json& row) { return row.is_object(); });
}

void print_table(const Json& rows, const std::string& indent) {
  std::vector<std::string> names;
  for (const auto& [name, value] : rows[0].items()) names.push_back(name);
  std::vector<std::vector<std::string>> cells = {names};
  for (const Json& row : rows) {
    cells.emplace_back();
    for (const std::string& name : names) {
      cells.back().push_back(row.contains(name) ? plain(row[name]) : "");
    }
  }
  std::cout << aligned(cells, indent);
}

void print_object(const Json& object, const std::string& indent) {
  size_t width = 0;
  for (const auto& [key, value] : object.items()) {
    if (!value.is_object() && !is_table(value)) width = std::max(width, key.size());
  }
  for (const auto& [key, value] : object.items()) {
    if (value.is_object() && !value.empty()) {
      std::cout << indent << key << "\n";
      print_object(value, indent + "  ");
    } else if (is_table(value)) {
      std::cout << indent << key << "\n";
      print_table(value, indent + "  ");
    } else {
      std::cout << fmt::format("{}{:<{}}  {}\n", indent, key, width, plain(value));
    }
  }
}

}  // namespace

void add_inspect_job(CLI::App& app, JobRun& run) {
  struct Options {
    std::vector<std::string> paths;
    bool json = false;
  };
  auto* job = app.add_subcommand("inspect", "Print what files or run folders hold");
  auto options = std::make_shared<Options>();
  job->add_option("path", options->paths, "Files or folders of this suite")->required();
  job->add_flag("--json", options->json, "One JSON line per path");
  job->footer(
      "Knows token, shard, round and score files (.h5), models (.safetensors), metrics and rounds\n"
      "(.jsonl), results (.json), experiments (.toml), tokenizers (.model) and run folders, of\n"
      "which it tells the stages that are complete.\n"
      "  smalltalk inspect runs/quickstart runs/quickstart/shards.h5");
  job->callback([&run, options] {
    run = [options] {
      int code = kExitDone;
      for (const std::string& path : options->paths) {
        try {
          Json description = {{"path", path}};
          if (fs::is_regular_file(path)) description["bytes"] = fs::file_size(path);
          description.update(describe(path));
          if (options->json) {
            std::cout << description.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
          } else {
            print_object(description, "");
            std::cout << "\n";
          }
        } catch (const std::exception& error) {
          log_error(std::string("inspect: ") + error.what());  // the other paths still print
          code = kExitFailure;
        }
      }
      return code;
    };
  });
}

}  // namespace smalltalk
