// results.json: arithmetic on cached log-likelihoods, and the accounts of FLOPs, time and traffic.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "mixture/evaluation/figures.hpp"
#include "mixture/evaluation/lory_routing.hpp"
#include "mixture/evaluation/measured_text.hpp"
#include "mixture/evaluation/provenance_json.hpp"
#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/routing/tfidf.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// A split, and where the routers send its sequences, if there is a mixture.
struct Split {
  std::string name;
  MeasuredText text;
  Assignment route;
};

Split read_split(const Run& run, const std::string& name) {
  Split split{name, read_measured_text(run.layout, name, run.experiment.data.seq_length), {}};
  if (run.experiment.has_mixture()) {
    split.route = argmax_assignment(read_scores(routing_cell(name).file(run.layout)));
  }
  return split;
}

// What the figures of all models of a run follow from.
struct Measured {
  const Run& run;
  Split test, validation;
  MixtureFlops flops;
  std::optional<TextClusters> clusters;  // of the control that they choose for
  ClusterFlops cluster_flops;
};

Measured measure(const Run& run, const std::vector<TrainUnit>& units, int64_t train_sequences) {
  Measured measured{run,
                    read_split(run, "test"),
                    read_split(run, "validation"),
                    mixture_flops(run.experiment, train_sequences),
                    clusters_of_control(run.layout, units),
                    {}};
  if (measured.clusters) {
    measured.cluster_flops = {
        sharding_flops(run.experiment, *measured.clusters, train_sequences),
        choice_flops(*measured.clusters, run.experiment.mixture.prefix_tokens)};
  }
  return measured;
}

// `prefix_tokens`: what the sums are split behind.
std::vector<SequenceLikelihoods> under_units(const Measured& measured, const TrainedModel& model,
                                             const Split& split, int64_t prefix_tokens,
                                             const std::string& merging = {}) {
  std::vector<SequenceLikelihoods> units;
  for (const TrainUnit* unit : model.units) {
    const auto read = [&](const std::string& how) {
      return read_cell(measured.run.layout, {split.name, unit->name, 0, how});
    };
    TokenLikelihoods tokens = read(merging);
    if (merging == kByFirstSegment) {
      tokens = merged_once(std::move(tokens), read(""), prefix_tokens - 1);
    }
    units.push_back(sum_by_sequence(tokens, prefix_tokens));
  }
  return units;
}

std::vector<SequenceLikelihoods> under_units(const Measured& measured, const TrainedModel& model,
                                             const Split& split) {
  return under_units(measured, model, split, measured.run.experiment.mixture.prefix_tokens);
}

// The unit of the model that each sequence finds.
Assignment unit_of_sequences(const Measured& measured, const TrainedModel& model,
                             const Split& split) {
  const int64_t n = split.text.num_sequences;
  switch (model.kind->chosen_by) {
    case ChosenBy::nobody:
      return Assignment(static_cast<size_t>(n), 0);
    case ChosenBy::routers:
      return split.route;
    case ChosenBy::turn:
      return round_robin(n, std::ssize(model.units));
    case ChosenBy::nearest_cluster:
      return nearest_clusters(*measured.clusters, TokenFile(measured.run.layout.tokens(split.name)),
                              measured.run.experiment.data.seq_length,
                              measured.run.experiment.mixture.prefix_tokens);
  }
  ST_CHECK(false);
}

json to_json(const Perplexity& perplexity) {
  return {{"all", perplexity.all}, {"after_prefix", perplexity.after_prefix}};
}

// Of all targets of the test split and of those behind the first segment of a sequence, under a
// model that may merge its experts. `units`: which of its units each sequence finds.
json by_segments(const Measured& measured, const TrainedModel& model, const Assignment& units,
                 const std::string& merging = {}) {
  const Split& split = measured.test;
  const int64_t behind = measured.run.experiment.lory.segment_tokens + 1;  // the first is given
  const SequenceLikelihoods sequences =
      under_assignment(under_units(measured, model, split, behind, merging), units);
  const Perplexity value = perplexity(sequences, split.text.targets, behind);
  return {{"all", value.all}, {"after_segment", value.after_prefix}};
}

int64_t sum_of(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

json or_null(const std::optional<double>& value) { return value ? json(*value) : json(nullptr); }

json by_domain(const SequenceLikelihoods& sequences, const MeasuredText& text) {
  json perplexities = json::object();
  for (size_t d = 0; d < text.domains.size(); ++d) {
    const auto value =
        perplexity_where(sequences, text.domain, static_cast<uint16_t>(d), text.targets);
    if (value) perplexities[text.domains[d]] = *value;
  }
  return perplexities;
}

// How a Lory model weighs its experts; null where no segment is weighed by another.
json lory_routing_json(const Measured& measured, const TrainedModel& model,
                       std::vector<std::string>& warnings) {
  const MeasuredText& text = measured.test.text;
  const ModelConfig config = model.kind->model(measured.run.experiment);
  const int64_t experts = config.merged_experts;
  const ScoreMatrix sums =
      read_cell(measured.run.layout, {"test", model.units[0]->name, 0, kRouting});
  const LoryRouting routing = lory_routing(sums, experts);
  if (routing.segments == 0) return nullptr;
  std::vector<int64_t> layers;  // that merge
  const std::vector<bool> merging = config.merging_layers();
  for (size_t layer = 0; layer < merging.size(); ++layer) {
    if (merging[layer]) layers.push_back(static_cast<int64_t>(layer));
  }
  json by_layer = json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerRouting& layer = routing.layers[i];
    by_layer.push_back({{"layer", layers[i]},
                        {"mean_weights", layer.mean_weights},
                        {"active_share", layer.active_share},
                        {"active_experts", std::ranges::count(layer.active, true)},
                        {"entropy", layer.entropy},
                        {"entropy_share", layer.entropy / std::log(experts)},
                        {"largest_weight", layer.largest_weight}});
  }
  json domains = json::array(), by_domain = json::array();
  const auto last = std::ssize(layers) - 1;
  for (const int64_t i : std::set<int64_t>{0, last / 2, last}) {  // first, middle, last
    json weights = json::array();
    domains.clear();
    const auto means = weights_by_label(sums, experts, i, text.domain, std::ssize(text.domains));
    for (size_t d = 0; d < means.size(); ++d) {
      if (means[d].empty()) continue;
      domains.push_back(text.domains[d]);
      weights.push_back(means[d]);
    }
    by_domain.push_back({{"layer", layers[static_cast<size_t>(i)]}, {"weights", weights}});
  }
  std::vector<int64_t> dead_layers;
  for (const int64_t i : dead_routers(routing, experts)) {
    dead_layers.push_back(layers[static_cast<size_t>(i)]);
  }
  const std::vector<int64_t> dead = dead_experts(routing, experts);
  std::ranges::copy(routing_warnings(dead_layers, dead), std::back_inserter(warnings));
  return {{"experts", experts},  {"segments", routing.segments}, {"layers", by_layer},
          {"domains", domains},  {"by_domain", by_domain},       {"dead_routers", dead_layers},
          {"dead_experts", dead}};
}

// `route`: which of its units each sequence of the test split finds, `own`: the split as the model
// is so used, `units`: under each of its units.
json figures_of(const Measured& measured, const TrainedModel& model, const Assignment& route,
                const SequenceLikelihoods& own, const std::vector<SequenceLikelihoods>& units) {
  const MeasuredText& text = measured.test.text;
  const int64_t prefix = measured.run.experiment.mixture.prefix_tokens;
  const SequenceLikelihoods on_validation =
      under_assignment(under_units(measured, model, measured.validation),
                       unit_of_sequences(measured, model, measured.validation));
  const ModelCosts costs =
      costs_of(measured.run.experiment, model, measured.flops, measured.cluster_flops);
  json figures = {{"perplexity", to_json(perplexity(own, text.targets, prefix))},
                  {"validation_perplexity",
                   to_json(perplexity(on_validation, measured.validation.text.targets, prefix))},
                  {"bits_per_byte", bits_per_byte(-total(own), sum_of(text.targets), text.info)},
                  {"perplexity_per_domain", by_domain(own, text)},
                  {"parameters", parameter_count(model.kind->model(measured.run.experiment))},
                  {"models", model.units.size()},
                  {"steps", model.units[0]->train.steps},
                  {"batch_size", model.units[0]->train.batch_size},
                  {"lr", model.units[0]->train.lr},
                  {"train_tokens", costs.train_tokens},
                  {"train_flops", costs.train_flops},
                  {"router_flops", costs.router_flops},
                  {"sharding_flops", costs.sharding_flops},
                  {"inference_flops_per_sequence", costs.inference_flops}};
  if (measured.run.experiment.lory.experts > 0) {
    figures["perplexity"]["after_segment"] = by_segments(measured, model, route)["after_segment"];
  }
  if (model.kind->merges_experts()) {
    figures["leaky_perplexity"] = by_segments(measured, model, route, kLeaky);
    figures["first_segment_perplexity"] = by_segments(measured, model, route, kByFirstSegment);
  }
  if (model.kind->role == Role::mixture) {
    figures["oracle_perplexity"] = to_json(
        perplexity(under_assignment(units, best_in_hindsight(units)), text.targets, prefix));
  }
  return figures;
}

// `dense` may be null.
json per_expert(const Measured& measured, const ShardInfo& shards,
                const SequenceLikelihoods& mixture, const SequenceLikelihoods* dense) {
  const std::vector<ExpertFigures> experts =
      figures_by_expert(measured.test.route, measured.run.experiment.mixture.experts, mixture,
                        dense, measured.test.text.targets);
  json rows = json::array();
  for (size_t e = 0; e < experts.size(); ++e) {
    json row = {{"expert", e},
                {"train_sequences", shards.size_of(static_cast<int64_t>(e))},
                {"eval_share", experts[e].eval_share},
                {"perplexity", or_null(experts[e].perplexity)}};
    if (dense != nullptr) row["dense_perplexity"] = or_null(experts[e].dense_perplexity);
    rows.push_back(row);
  }
  return rows;
}

json routing_json(const Measured& measured) {
  const MeasuredText& text = measured.test.text;
  const RoutingOfDomains routing =
      routing_of_domains(measured.test.route, text.domain, measured.run.experiment.mixture.experts,
                         std::ssize(text.domains));
  return {{"purity", routing.purity},
          {"largest_domain_share", routing.largest_domain_share},
          {"domains", text.domains},
          {"expert_by_domain", routing.expert_by_domain}};
}

json read_json_or(const fs::path& path, json otherwise) {
  if (!fs::exists(path)) return otherwise;
  return parse_json(read_text(path), path.string());
}

// Sums the ledgers that the ranks left; what went over the world after the shards must be nothing.
json communication(const Run& run) {
  std::map<std::tuple<std::string, std::string, std::string>, std::pair<int64_t, int64_t>> sums;
  int64_t outside = 0;
  int64_t collectives = 0;
  const fs::path folder = run.layout.ledger_folder();
  if (fs::exists(folder)) {
    std::set<fs::path> files;
    for (const auto& file : fs::directory_iterator(folder)) {
      // A killed process may have left a temporary file, whose name begins with a dot.
      const bool hidden = file.path().filename().string().starts_with(".");
      if (!hidden && file.path().extension() == ".json") files.insert(file.path());
    }
    for (const fs::path& file : files) {
      const json ledger = parse_json(read_text(file), file.string());
      try {
        for (const json& entry : ledger.at("entries")) {
          auto& [calls, bytes] =
              sums[{entry.at("phase"), entry.at("communicator"), entry.at("call")}];
          calls += entry.at("calls").get<int64_t>();
          bytes += entry.at("bytes").get<int64_t>();
        }
        outside += ledger.at("world_bytes_after_shards").get<int64_t>();
        collectives = std::max(collectives, ledger.at("collectives").get<int64_t>());
      } catch (const json::exception& error) {
        throw Error(file.string() + ": not a ledger of this program (" + error.what() + ")");
      }
    }
  }
  json phases = json::array();
  for (const auto& [key, value] : sums) {
    phases.push_back({{"phase", std::get<0>(key)},
                      {"communicator", std::get<1>(key)},
                      {"call", std::get<2>(key)},
                      {"calls", value.first},
                      {"bytes", value.second}});
  }
  return {{"collectives", collectives},
          {"bytes_per_router_per_round", 2 * run.experiment.mixture.sequences_per_round},
          {"world_bytes_after_shards", outside},
          {"phases", phases}};
}

}  // namespace

ResultLines write_results(const Run& run, const std::vector<TrainUnit>& units) {
  const Experiment& experiment = run.experiment;
  const MixtureParts made_of = require_one_mixture(run, units);
  const TokenFile train(run.layout.tokens("train"));
  const Measured measured = measure(run, units, sharded_sequences(run));

  json models = json::object();
  std::map<const ModelKind*, SequenceLikelihoods> on_test;  // of each model as it is used
  ResultLines lines;
  std::vector<std::string> perplexities;
  for (const TrainedModel& model : models_of(units)) {
    const std::vector<SequenceLikelihoods> of_units = under_units(measured, model, measured.test);
    SequenceLikelihoods& own = on_test[model.kind];
    const Assignment route = unit_of_sequences(measured, model, measured.test);
    own = under_assignment(of_units, route);
    json& figures = models[std::string(model.kind->name)];
    figures = figures_of(measured, model, route, own, of_units);
    if (model.kind->merges_experts()) {
      figures["routing"] = lory_routing_json(measured, model, lines.warnings);
    }
    const json& perplexity = figures.at("perplexity").at("all");
    if (!perplexity.is_number()) continue;
    perplexities.push_back(fmt::format("{} {:.3f}", model.kind->name, perplexity.get<double>()));
  }
  json results = {{"schema", 1},
                  {"name", experiment.name},
                  {"seed", experiment.seed},
                  {"experts", experiment.mixture.experts},
                  {"prefix_tokens", experiment.mixture.prefix_tokens},
                  {"seq_length", experiment.data.seq_length},
                  {"corpus",
                   {{"train_tokens", train.info().num_tokens},
                    {"validation_tokens", measured.validation.text.info.num_tokens},
                    {"test_tokens", measured.test.text.info.num_tokens},
                    {"vocab_size", train.info().vocab_size},
                    {"documents", train.info().num_documents}}},
                  {"models", models},
                  {"communication", communication(run)},
                  {"provenance", provenance_json(made_of)},
                  {"seconds", read_json_or(run.layout.seconds(), json::object())}};
  if (experiment.has_mixture()) {
    const ModelKind& mixture = first_kind(Role::mixture);
    const auto dense = on_test.find(&first_kind(Role::baseline));
    const ShardInfo shards =
        read_shard_info(find_shards(run.layout, run.layout.shards(), made_of.shards));
    results["train_tokens"] = models[std::string(mixture.name)]["train_tokens"];
    results["per_expert"] = per_expert(measured, shards, on_test.at(&mixture),
                                       dense == on_test.end() ? nullptr : &dense->second);
    results["routing"] = routing_json(measured);
  }
  write_text_atomically(run.layout.results(), results.dump(2) + "\n");
  lines.perplexities =
      fmt::format("perplexity of the test text: {}", fmt::join(perplexities, ", "));
  return lines;
}

}  // namespace smalltalk
