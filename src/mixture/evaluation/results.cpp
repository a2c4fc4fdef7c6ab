// results.json: arithmetic on cached log-likelihoods, and the accounts of FLOPs, time and traffic.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "mixture/evaluation/provenance_json.hpp"
#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/routing/tfidf.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Log-likelihoods of one model on one split: nats inside the prefix and after it, per sequence.
struct Likelihood {
  std::vector<double> head;
  std::vector<double> tail;
};

struct Split {
  std::string name;
  TokenFileInfo info;
  int64_t num_sequences = 0;
  Assignment route;  // argmax of the routers
  std::vector<std::string> domains;
  std::vector<uint16_t> domain;  // [num_sequences]
};

Likelihood read_likelihood(const RunLayout& layout, const Split& split, const std::string& unit,
                           int64_t prefix) {
  const TokenLikelihoods scores = read_cell(layout, {split.name, unit});
  Likelihood result;
  for (int64_t i = 0; i < scores.num_sequences(); ++i) {
    const auto row = scores.row(i);
    const auto middle = row.begin() + (prefix - 1);
    result.head.push_back(std::accumulate(row.begin(), middle, 0.0));
    result.tail.push_back(std::accumulate(middle, row.end(), 0.0));
  }
  return result;
}

// Each sequence under the expert that `route` names.
Likelihood routed(const std::vector<Likelihood>& experts, const Assignment& route) {
  Likelihood result;
  for (size_t i = 0; i < route.size(); ++i) {
    result.head.push_back(experts[route[i]].head[i]);
    result.tail.push_back(experts[route[i]].tail[i]);
  }
  return result;
}

// The best expert of each sequence in hindsight: how much routing leaves on the table.
Likelihood oracle(const std::vector<Likelihood>& experts) {
  Assignment best(experts[0].head.size(), 0);
  for (size_t i = 0; i < best.size(); ++i) {
    for (size_t e = 1; e < experts.size(); ++e) {
      const auto& b = experts[best[i]];
      if (experts[e].head[i] + experts[e].tail[i] > b.head[i] + b.tail[i]) {
        best[i] = static_cast<uint16_t>(e);
      }
    }
  }
  return routed(experts, best);
}

double nats(const Likelihood& likelihood, bool with_head) {
  double sum = std::accumulate(likelihood.tail.begin(), likelihood.tail.end(), 0.0);
  if (with_head) sum = std::accumulate(likelihood.head.begin(), likelihood.head.end(), sum);
  return -sum;
}

class Arithmetic {
 public:
  explicit Arithmetic(const Experiment& experiment)
      : length_(experiment.data.seq_length), prefix_(experiment.mixture.prefix_tokens) {}

  json perplexity(const Likelihood& likelihood) const {
    const auto n = static_cast<double>(likelihood.head.size());
    return {{"all", std::exp(nats(likelihood, true) / (n * static_cast<double>(length_)))},
            {"after_prefix",
             std::exp(nats(likelihood, false) / (n * static_cast<double>(length_ - prefix_ + 1)))}};
  }

  // Perplexity over all tokens of the sequences for which keep(i).
  template <typename Keep>
  json perplexity_where(const Likelihood& likelihood, Keep keep) const {
    double sum = 0;
    double count = 0;
    for (size_t i = 0; i < likelihood.head.size(); ++i) {
      if (!keep(i)) continue;
      sum -= likelihood.head[i] + likelihood.tail[i];
      count += static_cast<double>(length_);
    }
    return count == 0 ? json(nullptr) : json(std::exp(sum / count));
  }

 private:
  int64_t length_;
  int64_t prefix_;
};

Split read_split(const Run& run, const std::string& name) {
  const Experiment& experiment = run.experiment;
  Split split;
  split.name = name;
  const TokenFile tokens(run.layout.tokens(name));
  split.info = tokens.info();
  split.num_sequences = tokens.num_sequences(experiment.data.seq_length);
  split.route = argmax_assignment(read_scores(run.layout.evaluation(name, "routers")));
  const Domains domains = read_domains(run.layout.tokens(name));
  split.domains = domains.names;
  split.domain = sequence_domains(domains, split.num_sequences, experiment.data.seq_length);
  return split;
}

// What the routers make of the domains: the share of each domain's sequences that goes to each
// expert [E][domains]; the share of sequences that lie where most of their domain lies (purity);
// and the share whose domain is the largest of their expert.
json routing_of_domains(const Split& split, int64_t num_experts) {
  const size_t num_domains = split.domains.size();
  std::vector<std::vector<int64_t>> count(static_cast<size_t>(num_experts),
                                          std::vector<int64_t>(num_domains, 0));
  for (size_t i = 0; i < split.route.size(); ++i) ++count[split.route[i]][split.domain[i]];
  std::vector<std::vector<double>> shares(count.size(), std::vector<double>(num_domains, 0.0));
  int64_t with_their_domain = 0;
  for (size_t d = 0; d < num_domains; ++d) {
    int64_t total = 0;
    int64_t most = 0;
    for (const auto& row : count) {
      total += row[d];
      most = std::max(most, row[d]);
    }
    with_their_domain += most;
    if (total == 0) continue;
    for (size_t e = 0; e < count.size(); ++e) {
      shares[e][d] = static_cast<double>(count[e][d]) / static_cast<double>(total);
    }
  }
  int64_t of_largest_domain = 0;
  for (const auto& row : count) of_largest_domain += *std::max_element(row.begin(), row.end());
  const auto n = static_cast<double>(split.route.size());
  return {{"purity", static_cast<double>(with_their_domain) / n},
          {"largest_domain_share", static_cast<double>(of_largest_domain) / n},
          {"domains", split.domains},
          {"expert_by_domain", shares}};
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

void write_results(const Run& run, const std::vector<TrainUnit>& units) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
  const MixtureParts made_of = require_one_mixture(run, units);
  const int64_t experts = experiment.mixture.experts;
  const Arithmetic arithmetic(experiment);
  const Split test = read_split(run, "test");
  const Split validation = read_split(run, "validation");
  const TokenFile train(layout.tokens("train"));
  const int64_t train_sequences = train.num_sequences(experiment.data.seq_length);
  const MixtureFlops flops = mixture_flops(experiment, train_sequences);
  const double one_sequence = forward_flops(experiment.expert_model, 1, experiment.data.seq_length);

  // Units by the model they count for, in order.
  std::vector<std::string> names;
  std::map<std::string, std::vector<const TrainUnit*>> by_model;
  for (const TrainUnit& unit : units) {
    if (by_model[unit.model].empty()) names.push_back(unit.model);
    by_model[unit.model].push_back(&unit);
  }

  std::optional<TextClusters> clusters;
  if (by_model.contains("tfidf_kmeans")) clusters = clusters_of_control(run);

  json models = json::object();
  std::map<std::string, Likelihood> test_likelihood;
  for (const std::string& name : names) {
    const auto& members = by_model[name];
    const bool routed_model = members[0]->rows != Rows::all;
    const auto route_on = [&](const Split& split) {
      // These experts have no router that knows their shards: sequences go round them.
      if (name == "random_shards") return round_robin(split.num_sequences, std::ssize(members));
      if (name != "tfidf_kmeans") return split.route;
      return nearest_clusters(*clusters, TokenFile(layout.tokens(split.name)),
                              experiment.data.seq_length, experiment.mixture.prefix_tokens);
    };
    const auto likelihood_on = [&](const Split& split, Likelihood* best) {
      std::vector<Likelihood> parts;
      for (const TrainUnit* unit : members) {
        parts.push_back(
            read_likelihood(layout, split, unit->name, experiment.mixture.prefix_tokens));
      }
      if (!routed_model) return parts[0];
      if (best != nullptr) *best = oracle(parts);
      return routed(parts, route_on(split));
    };
    Likelihood best;
    const Likelihood on_test = likelihood_on(test, &best);
    test_likelihood[name] = on_test;
    json domain_perplexity = json::object();
    for (size_t d = 0; d < test.domains.size(); ++d) {
      const json value =
          arithmetic.perplexity_where(on_test, [&](size_t i) { return test.domain[i] == d; });
      if (!value.is_null()) domain_perplexity[test.domains[d]] = value;
    }
    double train_total = 0;
    int64_t tokens = 0;
    for (const TrainUnit* unit : members) {
      train_total += unit_flops(experiment, *unit);
      tokens += unit->train.steps * unit->train.batch_size * experiment.data.seq_length;
    }
    const bool mixture = name == "mixture";
    const double router_flops = mixture ? flops.router_train_upper + flops.router_scoring : 0.0;
    const bool clustered = name == "tfidf_kmeans";
    const double assigning = mixture     ? flops.sharding
                             : clustered ? sharding_flops(experiment, *clusters, train_sequences)
                                         : 0.0;
    const double inference =
        mixture     ? flops.inference_per_sequence
        : clustered ? one_sequence + choice_flops(*clusters, experiment.mixture.prefix_tokens)
                    : one_sequence;
    models[name] = {
        {"perplexity", arithmetic.perplexity(on_test)},
        {"validation_perplexity", arithmetic.perplexity(likelihood_on(validation, nullptr))},
        {"bits_per_byte",
         bits_per_byte(nats(on_test, true), test.num_sequences * experiment.data.seq_length,
                       test.info)},
        {"perplexity_per_domain", domain_perplexity},
        {"parameters", parameter_count(experiment.expert_model)},
        {"models", members.size()},
        {"steps", members[0]->train.steps},
        {"batch_size", members[0]->train.batch_size},
        {"lr", members[0]->train.lr},
        {"train_tokens", tokens},
        {"train_flops", train_total + router_flops + assigning},
        {"router_flops", router_flops},
        {"sharding_flops", assigning},
        {"inference_flops_per_sequence", inference}};
    if (mixture) models[name]["oracle_perplexity"] = arithmetic.perplexity(best);
  }

  const ShardInfo shards = read_shard_info(layout.shards());
  json per_expert = json::array();
  for (int64_t e = 0; e < experts; ++e) {
    const auto mine = [&](size_t i) { return test.route[i] == e; };
    const auto share = static_cast<double>(
        std::count(test.route.begin(), test.route.end(), static_cast<uint16_t>(e)));
    json row = {{"expert", e},
                {"train_sequences", shards.size_of(e)},
                {"eval_share", share / static_cast<double>(test.num_sequences)},
                {"perplexity", arithmetic.perplexity_where(test_likelihood.at("mixture"), mine)}};
    if (test_likelihood.contains("dense")) {
      row["dense_perplexity"] = arithmetic.perplexity_where(test_likelihood.at("dense"), mine);
    }
    per_expert.push_back(row);
  }

  const json results = {{"schema", 1},
                        {"name", experiment.name},
                        {"seed", experiment.seed},
                        {"experts", experts},
                        {"prefix_tokens", experiment.mixture.prefix_tokens},
                        {"seq_length", experiment.data.seq_length},
                        {"train_tokens", models["mixture"]["train_tokens"]},
                        {"corpus",
                         {{"train_tokens", train.info().num_tokens},
                          {"validation_tokens", validation.info.num_tokens},
                          {"test_tokens", test.info.num_tokens},
                          {"vocab_size", train.info().vocab_size},
                          {"documents", train.info().num_documents}}},
                        {"models", models},
                        {"per_expert", per_expert},
                        {"routing", routing_of_domains(test, experts)},
                        {"communication", communication(run)},
                        {"provenance", provenance_json(made_of)},
                        {"seconds", read_json_or(layout.seconds(), json::object())}};
  write_text_atomically(layout.results(), results.dump(2) + "\n");
}

}  // namespace smalltalk
