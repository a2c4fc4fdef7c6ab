#include "smalltalk/mixture/comparison.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "smalltalk/core/error.hpp"
#include "smalltalk/core/flops.hpp"
#include "smalltalk/core/log.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/provenance.hpp"

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

class Comparer {
 public:
  Comparer(const Experiment& experiment, const RunLayout& layout,
           const std::vector<TrainUnit>& units, const CompareOptions& options)
      : experiment_(experiment),
        layout_(layout),
        options_(options),
        models_(by_model(units)),
        tokens_(layout.tokens(options.split)),
        length_(experiment.data.seq_length) {}

  Comparison run();

 private:
  std::vector<TokenLikelihoods> read(const std::string& model, const std::string& split) const;
  void add(ComparedRow row, std::vector<double> log_likelihoods);
  void add_rules(const std::vector<TokenLikelihoods>& experts);
  Assignment by_domain(const std::vector<TokenLikelihoods>& experts) const;
  void finish();

  const Experiment& experiment_;
  const RunLayout& layout_;
  const CompareOptions& options_;
  std::map<std::string, std::vector<const TrainUnit*>> models_;
  TokenFile tokens_;
  int64_t length_;
  Comparison result_;
  std::vector<std::vector<double>> log_likelihoods_;  // [rows][N]
};

std::vector<TokenLikelihoods> Comparer::read(const std::string& model,
                                             const std::string& split) const {
  std::vector<TokenLikelihoods> cells;
  for (const TrainUnit* unit : models_.at(model)) {
    cells.push_back(read_cell(layout_, {split, unit->name}));
  }
  return cells;
}

void Comparer::add(ComparedRow row, std::vector<double> log_likelihoods) {
  result_.rows.push_back(std::move(row));
  log_likelihoods_.push_back(std::move(log_likelihoods));
}

Assignment Comparer::by_domain(const std::vector<TokenLikelihoods>& experts) const {
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

void Comparer::add_rules(const std::vector<TokenLikelihoods>& experts) {
  const auto count = std::ssize(experts);
  std::vector<TokenLikelihoods> routers;
  for (const EvalCell& cell : router_cells(options_.split, count)) {
    routers.push_back(read_cell(layout_, cell));
  }
  const double one = forward_flops(experiment_.expert_model, 1, length_);
  const auto scoring = [&](const ModelConfig& model, int64_t prefix) {
    return static_cast<double>(count) * forward_flops(model, 1, prefix);
  };
  const auto add_assignment = [&](const std::string& rule, int64_t prefix, double flops,
                                  const Assignment& assignment) {
    ComparedRow row{"mixture", rule, prefix};
    row.flops_per_sequence = flops;
    add(row, under_assignment(experts, assignment));
  };
  for (const int64_t prefix : options_.prefixes) {
    add_assignment("routers", prefix, one + scoring(experiment_.router_model, prefix),
                   argmax_assignment(prefix_scores(routers, prefix)));
  }
  for (const int64_t prefix : options_.prefixes) {
    add_assignment("experts as routers", prefix, one + scoring(experiment_.expert_model, prefix),
                   argmax_assignment(prefix_scores(experts, prefix)));
  }
  add_assignment("domain label", 0, one, by_domain(experts));
  add_assignment("in turn", 0, one, round_robin(experts[0].num_sequences(), count));
  add_assignment("best in hindsight", length_, static_cast<double>(count) * one,
                 argmax_assignment(prefix_scores(experts, length_ + 1)));
  const auto add_ensemble = [&](ComparedRow row, double routing, const ScoreMatrix& weights) {
    row.model = "mixture";
    row.flops_per_sequence = static_cast<double>(row.experts) * one + routing;
    add(row, under_ensemble(experts, weights));
  };
  const int64_t prefix = experiment_.mixture.prefix_tokens;
  const ScoreMatrix scores = prefix_scores(routers, prefix);
  for (const double temperature : options_.temperatures) {
    for (int64_t top = 2; top < 2 * count; top *= 2) {
      const int64_t size = std::min<int64_t>(top, count);
      ComparedRow row{"", "ensemble by posterior", prefix, size, temperature};
      add_ensemble(row, scoring(experiment_.router_model, prefix),
                   posterior(scores, size, temperature));
    }
  }
  const ScoreMatrix none(experts[0].num_sequences(), count);
  add_ensemble({"", "ensemble of equals", 0, count}, 0, posterior(none, count, 1));
}

Comparison Comparer::run() {
  result_.split = options_.split;
  for (const auto& [model, members] : models_) {
    if (model == "mixture") continue;
    const std::vector<TokenLikelihoods> cells = read(model, options_.split);
    const Assignment turns = round_robin(cells[0].num_sequences(), std::ssize(cells));
    ComparedRow row{model, members.size() > 1 ? "in turn" : ""};
    row.flops_per_sequence = forward_flops(experiment_.expert_model, 1, length_);
    add(row, under_assignment(cells, turns));
  }
  add_rules(read("mixture", options_.split));
  finish();
  return std::move(result_);
}

// Sums, and the differences from the reference.
void Comparer::finish() {
  const auto n = std::ssize(log_likelihoods_[0]);
  const std::vector<uint64_t> documents = documents_of(tokens_, n, length_);
  result_.num_sequences = n;
  result_.num_documents = std::ssize(std::set<uint64_t>(documents.begin(), documents.end()));
  std::string reference = options_.reference;
  if (reference.empty()) {
    for (const char* model : {"mixture", "dense_large_batch", "dense"}) {
      if (models_.contains(model)) reference = model;
    }
  }
  result_.reference = reference;
  // The mixture as it was trained to route, others as they are.
  const auto base = std::find_if(result_.rows.begin(), result_.rows.end(), [&](const auto& row) {
    return row.model == reference &&
           (row.rule != "routers" || row.prefix == experiment_.mixture.prefix_tokens);
  });
  if (base == result_.rows.end()) {
    std::string known;
    for (const auto& [model, members] : models_) known += (known.empty() ? "" : ", ") + model;
    throw Error(
        fmt::format("there is no model {} to compare with: there are {}", reference, known));
  }
  const std::vector<double>& of_base =
      log_likelihoods_[static_cast<size_t>(base - result_.rows.begin())];
  const std::vector<double> targets(static_cast<size_t>(n), static_cast<double>(length_));
  for (size_t r = 0; r < result_.rows.size(); ++r) {
    ComparedRow& row = result_.rows[r];
    std::vector<double> differences;
    double sum = 0;
    for (size_t i = 0; i < of_base.size(); ++i) {
      differences.push_back(of_base[i] - log_likelihoods_[r][i]);
      sum -= log_likelihoods_[r][i];
    }
    row.nats_per_token = sum / static_cast<double>(n * length_);
    row.perplexity = std::exp(row.nats_per_token);
    row.bits_per_byte = bits_per_byte(sum, n * length_, tokens_.info());
    row.difference =
        bootstrap_ratio(differences, targets, documents, options_.resamples, experiment_.seed);
  }
}

double percent(double nats) { return 100 * std::expm1(nats); }

std::vector<std::string> cells_of(const ComparedRow& row, const Comparison& comparison) {
  const Interval& d = row.difference;
  const bool reference = d.low == 0 && d.high == 0 && row.model == comparison.reference;
  std::string rule = row.rule;
  if (row.temperature > 0 && row.temperature != 1) {
    rule += fmt::format(", T = {:g}", row.temperature);
  }
  return {row.model,
          rule,
          row.prefix > 0 ? std::to_string(row.prefix) : "",
          std::to_string(row.experts),
          fmt::format("{:.3f}", row.perplexity),
          fmt::format("{:.4f}", row.bits_per_byte),
          reference ? "reference"
                    : fmt::format("{:+.2f} ({:+.2f} to {:+.2f}) %", percent(d.mean), percent(d.low),
                                  percent(d.high)),
          reference ? "" : verdict(d),
          human_count(row.flops_per_sequence)};
}

}  // namespace

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
  return cells;
}

Comparison compare(const Experiment& experiment, const RunLayout& layout,
                   const std::vector<TrainUnit>& units, const CompareOptions& options) {
  if (options.split != "validation" && options.split != "test") {
    throw Error(fmt::format("the split must be validation or test, is '{}'", options.split));
  }
  if (options.resamples < 1) throw Error("a bootstrap needs 1 resample or more");
  CompareOptions chosen = options;
  if (chosen.prefixes.empty()) chosen.prefixes = default_prefixes(experiment);
  for (const int64_t prefix : chosen.prefixes) {
    if (prefix < 2 || prefix > experiment.data.seq_length) {
      throw Error(fmt::format("a prefix must have 2 to {} tokens, not {}",
                              experiment.data.seq_length, prefix));
    }
  }
  for (const double temperature : chosen.temperatures) {
    if (!(temperature > 0)) throw Error("the temperature of an ensemble must be above 0");
  }
  require_one_mixture(experiment, layout, units);
  return Comparer(experiment, layout, units, chosen).run();
}

std::string comparison_json(const Comparison& comparison) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const ComparedRow& row : comparison.rows) {
    rows.push_back({{"model", row.model},
                    {"rule", row.rule},
                    {"prefix_tokens", row.prefix},
                    {"experts", row.experts},
                    {"temperature", row.temperature},
                    {"nats_per_token", row.nats_per_token},
                    {"perplexity", row.perplexity},
                    {"bits_per_byte", row.bits_per_byte},
                    {"inference_flops_per_sequence", row.flops_per_sequence},
                    {"difference_nats_per_token", row.difference.mean},
                    {"difference_95_percent", {row.difference.low, row.difference.high}},
                    {"verdict", verdict(row.difference)}});
  }
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
  if (!markdown) return aligned(lines);
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

}  // namespace smalltalk
