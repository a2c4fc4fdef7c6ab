// The tables of a sweep as files: JSON, Markdown, and the seconds that training took.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "mixture/evaluation/comparison_text.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/mixture/evaluation/sweep_tables.hpp"

namespace smalltalk {
namespace {

// What all rows are compared with, if that is one row.
std::string common_reference(const FilledTable& filled) {
  for (const SweepRow& row : filled.rows) {
    if (row.reference != filled.rows[0].reference) return "the reference";
  }
  return filled.rows[0].reference;
}

std::string spread(const std::vector<double>& values, double middle) {
  if (values.size() < 2) return fmt::format("{:.2f}", middle);
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return fmt::format("{:.2f} ({:.2f} to {:.2f})", middle, *low, *high);
}

std::string markdown_of(const FilledTable& filled) {
  std::vector<std::vector<std::string>> lines = {
      {"model", "chosen by", "prefix", "perplexity", "bits/byte",
       "against " + common_reference(filled), "verdict", "training FLOPs", "FLOPs/sequence"}};
  for (const SweepRow& row : filled.rows) {
    const ComparedRow& figures = row.figures;
    lines.push_back({row.label.empty() ? row.run + ": " + model_name(figures) : row.label,
                     figures.experts > 1 ? fmt::format("{} of {}", figures.rule, figures.experts)
                                         : figures.rule,
                     figures.prefix > 0 ? std::to_string(figures.prefix) : "",
                     spread(row.perplexities, figures.perplexity),
                     fmt::format("{:.4f}", figures.bits_per_byte),
                     row.is_reference ? "reference" : percent_of(figures.difference),
                     row.is_reference ? "" : verdict(figures.difference),
                     fmt::format("{:.2e}", row.train_flops),
                     fmt::format("{:.2e}", figures.flops_per_sequence)});
  }
  const std::vector<uint64_t>& seeds = filled.table.seeds;
  return fmt::format(
      "**{}**\n\n{}\n{} {} sequences of {} documents; {}; intervals of 95 % over documents.\n",
      filled.table.title, markdown_table(lines), filled.num_sequences, filled.table.data,
      filled.num_documents,
      seeds.size() == 1 ? fmt::format("seed {}", seeds[0])
                        : fmt::format("means over seeds {} (perplexity: lowest to highest)",
                                      fmt::join(seeds, ", ")));
}

}  // namespace

std::string sweep_seconds(const std::vector<TrainedRun>& runs) {
  const auto read = [](const std::filesystem::path& file) {
    return parse_json(read_text(file), file.string());
  };
  std::map<std::string, std::map<std::string, std::vector<double>>> all;
  for (const TrainedRun& trained : runs) {
    const RunLayout& layout = trained.run.layout;
    // The tokens are a sweep's own: without a mixture a run has no stage that is timed.
    const nlohmann::json stages = std::filesystem::exists(layout.seconds())
                                      ? read(layout.seconds())
                                      : nlohmann::json::object();
    for (const TrainedModel& model : models_of(trained.units)) {
      double seconds = 0;
      for (const TrainUnit* unit : model.units) {
        seconds += read(layout.trained_mark(unit->name)).at("seconds").get<double>();
      }
      if (model.kind->chosen_by == ChosenBy::routers) {
        seconds += stages.value("route", 0.0) + stages.value("shard", 0.0);
      } else if (model.kind->chosen_by == ChosenBy::nearest_cluster) {
        seconds += stages.value("tfidf", 0.0);
      }
      all[trained.name][std::string(model.kind->name)].push_back(seconds);
    }
  }
  nlohmann::json means;
  for (const auto& [run, models] : all) {
    for (const auto& [model, seconds] : models) means[run][model] = mean(seconds);
  }
  return means.dump(2) + "\n";
}

std::string sweep_json(const std::vector<FilledTable>& tables) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const FilledTable& filled : tables) {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const SweepRow& row : filled.rows) {
      nlohmann::ordered_json json = {{"run", row.run}, {"label", row.label}};
      json.update(row_json(row.figures));
      json["reference"] = row.is_reference;
      json["compared_with"] = row.reference;
      json["train_flops"] = row.train_flops;
      json["perplexity_by_seed"] = row.perplexities;
      json["difference_by_seed"] = row.seed_differences;
      rows.push_back(json);
    }
    all.push_back({{"name", filled.table.name},
                   {"title", filled.table.title},
                   {"data", filled.table.data},
                   {"seeds", filled.table.seeds},
                   {"sequences", filled.num_sequences},
                   {"documents", filled.num_documents},
                   {"rows", rows}});
  }
  return nlohmann::ordered_json{{"schema", 1}, {"tables", all}}.dump(2) + "\n";
}

std::string sweep_markdown(const std::vector<FilledTable>& tables) {
  std::vector<std::string> texts;
  for (const FilledTable& filled : tables) texts.push_back(markdown_of(filled));
  return fmt::format("{}", fmt::join(texts, "\n"));
}

}  // namespace smalltalk
