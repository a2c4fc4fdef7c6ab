#include "smalltalk/mixture/evaluation/comparison.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string_view>

#include "mixture/evaluation/measured_text.hpp"
#include "mixture/evaluation/rows.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/routing/ngram_routing.hpp"
#include "smalltalk/mixture/routing/tfidf.hpp"
#include "smalltalk/mixture/run/provenance.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"

namespace smalltalk {
namespace {

// Of a model that has one row, that; of those that choose by a prefix, the one by M tokens. The
// rule that a model is trained for comes first.
size_t reference_row(const RunRows& run, const std::string& model, int64_t prefix_tokens) {
  std::set<std::string_view> known;
  for (size_t r = 0; r < run.rows.size(); ++r) {
    const ComparedRow& row = run.rows[r];
    if (row.kind->name == model && (row.prefix == 0 || row.prefix == prefix_tokens)) return r;
    known.insert(row.kind->name);
  }
  throw Error(fmt::format("there is no model {} to compare with: there are {}", model,
                          fmt::join(known, ", ")));
}

// A baseline, or where there is none what comes first: the mixture, if there is one.
const ModelKind& usual_reference(const std::vector<TrainUnit>& units) {
  const auto baseline = std::ranges::find_if(
      units, [](const TrainUnit& unit) { return unit.kind->role == Role::baseline; });
  return *(baseline == units.end() ? units.begin() : baseline)->kind;
}

// What the routers' assignments of the training sequences teach, by the prefix that they read; none
// if the training tokens are gone.
std::optional<NgramClassifier> learn_shards(const Run& run, const MixtureParts& parts) {
  const RunLayout& layout = run.layout;
  if (!run.experiment.has_mixture() || !std::filesystem::exists(layout.tokens("train"))) return {};
  const Shards shards = read_shards(find_shards(layout, layout.shards(), parts.shards));
  return learn_experts(run, *training_tokens(run), {}, shards.expert);
}

Assignment rate_all(const NgramClassifier& classifier, const TokenFile& tokens, int64_t seq_length,
                    int64_t prefix) {
  const std::vector<float> scores =
      rate_sequences(classifier, tokens, seq_length, prefix, 0, tokens.num_sequences(seq_length));
  LocalScores<float> all{classifier.num_classes(), {{0, scores}}};
  return argmax_assignment(all);
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
  const bool other_text = options.split != "validation" && options.split != "test";
  for (const TrainUnit& unit : units) {
    if (other_text) cells.push_back({options.split, unit.name});
  }
  if (options.split != "test") {
    std::ranges::copy(merging_cells(units, options.split), std::back_inserter(cells));
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
      if (unit.passes(step)) cells.push_back({split, unit.name, step});
    }
  }
  return cells;
}

RunRows compared_rows(const Run& run, const std::vector<TrainUnit>& units,
                      const CompareOptions& options) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
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
  for (const TrainUnit& unit : units) {
    for (const int64_t step : chosen.steps) {
      if (step > unit.dense_steps) continue;
      log_info(fmt::format("{} is still dense at step {}, which is left out", unit.name, step));
    }
  }
  for (const double temperature : chosen.temperatures) {
    if (!(temperature > 0)) throw Error("the temperature of an ensemble must be above 0");
  }
  const MixtureParts parts = require_one_mixture(run, units);

  const int64_t length = experiment.data.seq_length;
  const TokenFile tokens(layout.tokens(chosen.split));
  const std::optional<TextClusters> clusters = clusters_of_control(layout, units);
  RowSources sources;
  sources.text = read_measured_text(layout, chosen.split, length);
  sources.validation = read_measured_text(layout, "validation", length);
  sources.documents = sequence_documents(tokens.document_ends(), sources.text.num_sequences, length,
                                         tokens.info().packed_length > 0);
  sources.cell = [&](const EvalCell& cell) { return read_cell(layout, cell); };
  sources.nearest_cluster = [&](int64_t prefix) {
    return nearest_clusters(*clusters, tokens, length, prefix);
  };
  sources.cluster_flops = [&](int64_t prefix) { return choice_flops(*clusters, prefix); };
  const std::optional<NgramClassifier> ngrams = learn_shards(run, parts);
  if (ngrams) {
    sources.by_ngrams = [&](int64_t prefix) { return rate_all(*ngrams, tokens, length, prefix); };
    sources.ngram_flops = [&](int64_t prefix) {
      return ngram_flops(experiment.mixture.experts, prefix);
    };
  }
  return find_rows(experiment, units, chosen, sources);
}

Comparison compare(const Run& run, const std::vector<TrainUnit>& units,
                   const CompareOptions& options) {
  if (options.resamples < 1) throw Error("a bootstrap needs 1 resample or more");
  RunRows found = compared_rows(run, units, options);
  Comparison result;
  result.split = options.split;
  result.reference = options.reference;
  if (result.reference.empty()) result.reference = usual_reference(units).name;
  result.num_sequences = std::ssize(found.documents);
  result.num_documents = std::ssize(std::set(found.documents.begin(), found.documents.end()));
  const size_t base = reference_row(found, result.reference, run.experiment.mixture.prefix_tokens);
  for (size_t r = 0; r < found.rows.size(); ++r) {
    found.rows[r].difference = difference_of(found.log_likelihoods[r], found.log_likelihoods[base],
                                             found, options.resamples, run.experiment.seed);
  }
  result.rows = std::move(found.rows);
  return result;
}

Interval difference_of(std::span<const double> log_likelihoods, std::span<const double> reference,
                       const RunRows& run, int64_t resamples, uint64_t seed) {
  std::vector<double> differences;
  for (size_t i = 0; i < reference.size(); ++i) {
    differences.push_back(reference[i] - log_likelihoods[i]);
  }
  return bootstrap_ratio(differences, run.targets, run.documents, resamples, seed);
}

}  // namespace smalltalk
