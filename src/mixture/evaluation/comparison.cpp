#include "smalltalk/mixture/evaluation/comparison.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "mixture/evaluation/comparison_text.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/routing/tfidf.hpp"
#include "smalltalk/mixture/run/provenance.hpp"

namespace smalltalk {
namespace {

// Of the models that are compared, by the model's name; a mixture's experts in order.
std::map<std::string, std::vector<const TrainUnit*>> by_model(const std::vector<TrainUnit>& units) {
  std::map<std::string, std::vector<const TrainUnit*>> models;
  for (const TrainUnit& unit : units) models[unit.model].push_back(&unit);
  return models;
}

// The document that each sequence's first token lies in.
std::vector<uint64_t> documents_of(const TokenFile& tokens, int64_t num_sequences, int64_t length) {
  const std::vector<uint64_t> ends = tokens.document_ends();
  std::vector<uint64_t> documents;
  for (int64_t i = 0; i < num_sequences; ++i) {
    const auto first = static_cast<uint64_t>(i * length);
    documents.push_back(
        static_cast<uint64_t>(std::upper_bound(ends.begin(), ends.end(), first) - ends.begin()));
  }
  return documents;
}

class RowFinder {
 public:
  RowFinder(const Run& run, const std::vector<TrainUnit>& units, const CompareOptions& options)
      : run_(run),
        experiment_(run.experiment),
        layout_(run.layout),
        options_(options),
        models_(by_model(units)),
        tokens_(layout_.tokens(options.split)),
        length_(experiment_.data.seq_length) {}

  RunRows find();

 private:
  std::vector<TokenLikelihoods> read(const std::string& model, const std::string& split,
                                     int64_t step = 0) const;
  void add(ComparedRow row, std::vector<double> log_likelihoods);
  void add_rules(const std::vector<TokenLikelihoods>& experts);
  void add_clusters(const std::vector<TokenLikelihoods>& experts, int64_t step,
                    std::span<const int64_t> prefixes);
  void add_model(const std::string& model, int64_t step);
  void add_routed(const std::vector<TokenLikelihoods>& experts, int64_t step,
                  std::span<const int64_t> prefixes);
  double scoring_flops(const ModelConfig& model, int64_t prefix) const {
    return static_cast<double>(experiment_.mixture.experts) * forward_flops(model, 1, prefix);
  }
  Assignment by_domain(const std::vector<TokenLikelihoods>& experts) const;

  const Run& run_;
  const Experiment& experiment_;  // of the run, as is the layout
  const RunLayout& layout_;
  const CompareOptions& options_;
  std::map<std::string, std::vector<const TrainUnit*>> models_;
  TokenFile tokens_;
  int64_t length_;
  double one_ = 0;                         // FLOPs of one expert
  std::vector<TokenLikelihoods> routers_;  // [E]
  std::optional<TextClusters> clusters_;   // of the control, if there is one
  RunRows result_;
};

std::vector<TokenLikelihoods> RowFinder::read(const std::string& model, const std::string& split,
                                              int64_t step) const {
  std::vector<TokenLikelihoods> cells;
  for (const TrainUnit* unit : models_.at(model)) {
    cells.push_back(read_cell(layout_, {split, unit->name, step}));
  }
  return cells;
}

void RowFinder::add(ComparedRow row, std::vector<double> log_likelihoods) {
  const double nats = -std::accumulate(log_likelihoods.begin(), log_likelihoods.end(), 0.0);
  const int64_t targets = std::ssize(log_likelihoods) * length_;
  row.nats_per_token = nats / static_cast<double>(targets);
  row.perplexity = std::exp(row.nats_per_token);
  row.bits_per_byte = bits_per_byte(nats, targets, tokens_.info());
  result_.rows.push_back(std::move(row));
  result_.log_likelihoods.push_back(std::move(log_likelihoods));
}

Assignment RowFinder::by_domain(const std::vector<TokenLikelihoods>& experts) const {
  const std::vector<TokenLikelihoods> validation = read("mixture", "validation");
  const Domains known = read_domains(layout_.tokens("validation"));
  const std::vector<uint16_t> best = best_expert_of_domains(
      validation, sequence_domains(known, validation[0].num_sequences(), length_),
      std::ssize(known.names));
  // The splits number the domains by themselves.
  const Domains here = read_domains(layout_.tokens(options_.split));
  Assignment assignment;
  for (const uint16_t d : sequence_domains(here, experts[0].num_sequences(), length_)) {
    const auto found = std::find(known.names.begin(), known.names.end(), here.names[d]);
    assignment.push_back(found == known.names.end() ? best[0] : best[found - known.names.begin()]);
  }
  return assignment;
}

// As the mixture is trained to be used.
void RowFinder::add_routed(const std::vector<TokenLikelihoods>& experts, int64_t step,
                           std::span<const int64_t> prefixes) {
  for (const int64_t prefix : prefixes) {
    ComparedRow row{"mixture", "routers", prefix};
    row.step = step;
    row.flops_per_sequence = one_ + scoring_flops(experiment_.router_model, prefix);
    add(row, under_assignment(experts, argmax_assignment(prefix_scores(routers_, prefix))));
  }
}

void RowFinder::add_rules(const std::vector<TokenLikelihoods>& experts) {
  const auto count = std::ssize(experts);
  const auto add_assignment = [&](const std::string& rule, int64_t prefix, double flops,
                                  const Assignment& assignment) {
    ComparedRow row{"mixture", rule, prefix};
    row.flops_per_sequence = flops;
    add(row, under_assignment(experts, assignment));
  };
  for (const int64_t prefix : options_.prefixes) {
    add_assignment("experts as routers", prefix,
                   one_ + scoring_flops(experiment_.expert_model, prefix),
                   argmax_assignment(prefix_scores(experts, prefix)));
  }
  add_assignment("domain label", 0, one_, by_domain(experts));
  add_assignment("in turn", 0, one_, round_robin(experts[0].num_sequences(), count));
  add_assignment("best in hindsight", length_, static_cast<double>(count) * one_,
                 argmax_assignment(prefix_scores(experts, length_ + 1)));
  const auto add_ensemble = [&](ComparedRow row, double routing, const ScoreMatrix& weights) {
    row.model = "mixture";
    row.flops_per_sequence = static_cast<double>(row.experts) * one_ + routing;
    add(row, under_ensemble(experts, weights));
  };
  const int64_t prefix = experiment_.mixture.prefix_tokens;
  const ScoreMatrix scores = prefix_scores(routers_, prefix);
  for (const double temperature : options_.temperatures) {
    for (int64_t top = 2; top < 2 * count; top *= 2) {
      const int64_t size = std::min<int64_t>(top, count);
      ComparedRow row{"", "ensemble by posterior", prefix, size, temperature};
      add_ensemble(row, scoring_flops(experiment_.router_model, prefix),
                   posterior(scores, size, temperature));
    }
  }
  const ScoreMatrix none(experts[0].num_sequences(), count);
  add_ensemble({"", "ensemble of equals", 0, count}, 0, posterior(none, count, 1));
}

// The control by its own way to choose.
void RowFinder::add_clusters(const std::vector<TokenLikelihoods>& experts, int64_t step,
                             std::span<const int64_t> prefixes) {
  if (!clusters_) clusters_ = clusters_of_control(run_);
  for (const int64_t prefix : prefixes) {
    ComparedRow row{"tfidf_kmeans", "TF-IDF", prefix};
    row.step = step;
    row.flops_per_sequence = one_ + choice_flops(*clusters_, prefix);
    add(row, under_assignment(experts, nearest_clusters(*clusters_, tokens_, length_, prefix)));
  }
}

// One row for what has no rules to choose by, or is a checkpoint.
void RowFinder::add_model(const std::string& model, int64_t step) {
  const std::vector<TokenLikelihoods> cells = read(model, options_.split, step);
  const int64_t own_prefix[] = {experiment_.mixture.prefix_tokens};
  const std::span<const int64_t> prefixes =
      step > 0 ? std::span<const int64_t>(own_prefix) : options_.prefixes;
  if (model == "mixture") {
    add_routed(cells, step, prefixes);
    if (step == 0) add_rules(cells);
  } else if (model == "tfidf_kmeans") {
    add_clusters(cells, step, prefixes);
  } else {
    ComparedRow row{model, cells.size() > 1 ? "in turn" : ""};
    row.step = step;
    row.flops_per_sequence = one_;
    add(row, under_assignment(cells, round_robin(cells[0].num_sequences(), std::ssize(cells))));
  }
}

RunRows RowFinder::find() {
  one_ = forward_flops(experiment_.expert_model, 1, length_);
  for (const EvalCell& cell : router_cells(options_.split, experiment_.mixture.experts)) {
    routers_.push_back(read_cell(layout_, cell));
  }
  for (const auto& [model, members] : models_) {
    if (model != "mixture") add_model(model, 0);
  }
  add_model("mixture", 0);
  for (const auto& [model, members] : models_) {
    for (const int64_t step : options_.steps) {
      if (step < members[0]->train.steps) add_model(model, step);
    }
  }
  result_.documents = documents_of(tokens_, std::ssize(result_.log_likelihoods[0]), length_);
  result_.seq_length = length_;
  result_.tokens = tokens_.info().content_hash;
  return std::move(result_);
}

// Of a model that has one row, that; of those that choose by a prefix, the one by M tokens. The
// rule that a model is trained for comes first.
size_t reference_row(const RunRows& run, const std::string& model, int64_t prefix_tokens) {
  std::set<std::string> known;
  for (size_t r = 0; r < run.rows.size(); ++r) {
    const ComparedRow& row = run.rows[r];
    if (row.model == model && (row.prefix == 0 || row.prefix == prefix_tokens)) return r;
    known.insert(row.model);
  }
  throw Error(fmt::format("there is no model {} to compare with: there are {}", model,
                          fmt::join(known, ", ")));
}

std::vector<std::string> cells_of(const ComparedRow& row, const Comparison& comparison) {
  const Interval& d = row.difference;
  const bool reference =
      d.low == 0 && d.high == 0 && row.model == comparison.reference && row.step == 0;
  std::string rule = row.rule;
  if (row.temperature > 0 && row.temperature != 1) {
    rule += fmt::format(", T = {:g}", row.temperature);
  }
  return {model_name(row),
          rule,
          row.prefix > 0 ? std::to_string(row.prefix) : "",
          std::to_string(row.experts),
          fmt::format("{:.3f}", row.perplexity),
          fmt::format("{:.4f}", row.bits_per_byte),
          reference ? "reference" : percent_of(d),
          reference ? "" : verdict(d),
          human_count(row.flops_per_sequence)};
}

}  // namespace

nlohmann::ordered_json row_json(const ComparedRow& row) {
  return {{"model", row.model},
          {"rule", row.rule},
          {"prefix_tokens", row.prefix},
          {"experts", row.experts},
          {"temperature", row.temperature},
          {"step", row.step},
          {"nats_per_token", row.nats_per_token},
          {"perplexity", row.perplexity},
          {"bits_per_byte", row.bits_per_byte},
          {"inference_flops_per_sequence", row.flops_per_sequence},
          {"difference_nats_per_token", row.difference.mean},
          {"difference_95_percent", {row.difference.low, row.difference.high}},
          {"verdict", verdict(row.difference)}};
}

std::string model_name(const ComparedRow& row) {
  return row.step == 0 ? row.model : fmt::format("{}, step {}", row.model, row.step);
}

double percent_of(double nats) { return 100 * std::expm1(nats); }

std::string percent_of(const Interval& nats) {
  return fmt::format("{:+.2f} ({:+.2f} to {:+.2f}) %", percent_of(nats.mean), percent_of(nats.low),
                     percent_of(nats.high));
}

std::string markdown_table(const std::vector<std::vector<std::string>>& lines) {
  std::string text;
  for (size_t i = 0; i < lines.size(); ++i) {
    for (const std::string& cell : lines[i]) text += fmt::format("| {} ", cell);
    text += "|\n";
    if (i > 0) continue;
    for (size_t c = 0; c < lines[i].size(); ++c) text += "|---";
    text += "|\n";
  }
  return text;
}

std::vector<int64_t> default_prefixes(const Experiment& experiment) {
  std::set<int64_t> prefixes = {experiment.mixture.prefix_tokens};
  for (int64_t prefix = 8; prefix <= experiment.data.seq_length; prefix *= 2) {
    prefixes.insert(prefix);
  }
  return {prefixes.begin(), prefixes.end()};
}

std::vector<EvalCell> compare_cells(const Experiment& experiment,
                                    const std::vector<TrainUnit>& units,
                                    const CompareOptions& options) {
  std::vector<EvalCell> cells = eval_cells(units);
  for (const EvalCell& cell : router_cells(options.split, experiment.mixture.experts)) {
    cells.push_back(cell);
  }
  const bool other_text = options.split != "validation" && options.split != "test";
  for (const TrainUnit& unit : units) {
    if (other_text) cells.push_back({options.split, unit.name});
  }
  std::ranges::copy(checkpoint_cells(units, options.split, options.steps),
                    std::back_inserter(cells));
  return cells;
}

std::vector<EvalCell> checkpoint_cells(const std::vector<TrainUnit>& units,
                                       const std::string& split, const std::set<int64_t>& steps) {
  std::vector<EvalCell> cells;
  for (const TrainUnit& unit : units) {
    for (const int64_t step : steps) {
      if (step < unit.train.steps) cells.push_back({split, unit.name, step});
    }
  }
  return cells;
}

RunRows compared_rows(const Run& run, const std::vector<TrainUnit>& units,
                      const CompareOptions& options) {
  const Experiment& experiment = run.experiment;
  CompareOptions chosen = options;
  if (chosen.prefixes.empty()) chosen.prefixes = default_prefixes(experiment);
  // What the mixture is trained for is never left out.
  std::set<int64_t> prefixes(chosen.prefixes.begin(), chosen.prefixes.end());
  prefixes.insert(experiment.mixture.prefix_tokens);
  chosen.prefixes.assign(prefixes.begin(), prefixes.end());
  for (const int64_t prefix : chosen.prefixes) {
    if (prefix < 2 || prefix > experiment.data.seq_length) {
      throw Error(fmt::format("a prefix must have 2 to {} tokens, not {}",
                              experiment.data.seq_length, prefix));
    }
  }
  for (const int64_t step : chosen.steps) {
    if (step < 1) throw Error(fmt::format("there is no checkpoint of step {}", step));
  }
  for (const double temperature : chosen.temperatures) {
    if (!(temperature > 0)) throw Error("the temperature of an ensemble must be above 0");
  }
  require_one_mixture(run, units);
  return RowFinder(run, units, chosen).find();
}

Comparison compare(const Run& run, const std::vector<TrainUnit>& units,
                   const CompareOptions& options) {
  if (options.resamples < 1) throw Error("a bootstrap needs 1 resample or more");
  RunRows measured = compared_rows(run, units, options);
  Comparison result;
  result.split = options.split;
  result.reference = options.reference;
  if (result.reference.empty()) {
    for (const char* model : {"mixture", "dense_large_batch", "dense"}) {
      for (const TrainUnit& unit : units) {
        if (unit.model == model) result.reference = model;
      }
    }
  }
  const std::vector<uint64_t>& documents = measured.documents;
  result.num_sequences = std::ssize(documents);
  result.num_documents = std::ssize(std::set(documents.begin(), documents.end()));
  const size_t base =
      reference_row(measured, result.reference, run.experiment.mixture.prefix_tokens);
  for (size_t r = 0; r < measured.rows.size(); ++r) {
    measured.rows[r].difference =
        difference_of(measured.log_likelihoods[r], measured.log_likelihoods[base], measured,
                      options.resamples, run.experiment.seed);
  }
  result.rows = std::move(measured.rows);
  return result;
}

Interval difference_of(std::span<const double> log_likelihoods, std::span<const double> reference,
                       const RunRows& run, int64_t resamples, uint64_t seed) {
  std::vector<double> differences;
  for (size_t i = 0; i < reference.size(); ++i) {
    differences.push_back(reference[i] - log_likelihoods[i]);
  }
  const std::vector<double> targets(differences.size(), static_cast<double>(run.seq_length));
  return bootstrap_ratio(differences, targets, run.documents, resamples, seed);
}

std::string comparison_json(const Comparison& comparison) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const ComparedRow& row : comparison.rows) rows.push_back(row_json(row));
  const nlohmann::ordered_json all = {{"schema", 1},
                                      {"split", comparison.split},
                                      {"reference", comparison.reference},
                                      {"sequences", comparison.num_sequences},
                                      {"documents", comparison.num_documents},
                                      {"rows", rows}};
  return all.dump(2) + "\n";
}

std::string comparison_table(const Comparison& comparison, bool markdown) {
  std::vector<std::vector<std::string>> lines = {
      {"model", "rule", "prefix", "experts", "perplexity", "bits/byte",
       "perplexity against " + comparison.reference, "verdict", "FLOPs/sequence"}};
  for (const ComparedRow& row : comparison.rows) lines.push_back(cells_of(row, comparison));
  return markdown ? markdown_table(lines) : aligned(lines);
}

}  // namespace smalltalk
