#include "smalltalk/mixture/evaluation/sweep_tables.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "mixture/evaluation/comparison_text.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kResamples = 2000;
constexpr uint64_t kBootstrapSeed = 1;

template <typename T>
bool holds(const std::vector<T>& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// What one (run, seed) has.
struct MeasuredRun {
  const TrainedRun* trained = nullptr;
  RunRows rows;
  nlohmann::json models;  // of results.json

  double train_flops(const ComparedRow& row) const;
};

// A checkpoint has taken its share of the steps, and all of the routing.
double MeasuredRun::train_flops(const ComparedRow& row) const {
  const nlohmann::json& model = models.at(std::string(row.kind->name));
  const double all = model.at("train_flops").get<double>();
  if (row.step == 0) return all;
  const double routing =
      model.at("router_flops").get<double>() + model.at("sharding_flops").get<double>();
  const double share = static_cast<double>(row.step) / model.at("steps").get<double>();
  return routing + share * (all - routing);
}

// A row of a run, of which each seed has one.
struct RowPlace {
  std::string run;
  size_t index = 0;
  friend bool operator==(const RowPlace&, const RowPlace&) = default;
};

std::string describe(const RowChoice& choice) {
  return fmt::format(
      "run {}, model {}, rule {}, prefix {}, step {}", fmt::join(choice.runs, " or "),
      choice.models.empty() ? "any" : fmt::format("{}", fmt::join(choice.models, " or ")),
      choice.rules.empty() ? "as trained" : fmt::format("{}", fmt::join(choice.rules, " or ")),
      choice.prefixes.empty() ? "its own" : fmt::format("{}", fmt::join(choice.prefixes, " or ")),
      choice.steps.empty() ? "the last" : fmt::format("{}", fmt::join(choice.steps, " or ")));
}

std::string full_name(const std::string& run, const ComparedRow& row) {
  const bool chosen = row.prefix > 0 && row.rule != kInHindsight;
  return fmt::format("{}: {}{}", run, model_name(row),
                     chosen ? fmt::format(" by {} tokens", row.prefix) : "");
}

// The runs of a sweep on one text, by name and seed.
class MeasuredRuns {
 public:
  // For the tables of that data.
  MeasuredRuns(const Sweep& sweep, const std::vector<TrainedRun>& runs, const std::string& data);
  FilledTable fill(const SweepTable& table) const;

 private:
  const MeasuredRun& measured(const std::string& run, uint64_t seed) const {
    return measured_.at({run, seed});
  }
  const ComparedRow& row(const RowPlace& place, uint64_t seed) const {
    return measured(place.run, seed).rows.rows[place.index];
  }
  std::vector<RowPlace> chosen(const SweepTable& table, const RowChoice& choice) const;
  RowPlace reference_of(const SweepTable& table, const RowPlace& place) const;
  std::vector<double> mean_log_likelihoods(const RowPlace& place,
                                           const std::vector<uint64_t>& seeds) const;
  void require_same_sequences(const SweepTable& table, const RowPlace& a, const RowPlace& b) const;
  SweepRow figures(const SweepTable& table, const RowPlace& place) const;

  std::map<std::pair<std::string, uint64_t>, MeasuredRun> measured_;
};

MeasuredRuns::MeasuredRuns(const Sweep& sweep, const std::vector<TrainedRun>& runs,
                           const std::string& data) {
  std::set<std::pair<std::string, uint64_t>> needed;
  for (const SweepTable& table : sweep.tables) {
    if (table.data != data) continue;
    const auto need = [&](const RowChoice& choice) {
      for (const std::string& run : choice.runs) {
        for (const uint64_t seed : table.seeds) needed.insert({run, seed});
      }
    };
    std::for_each(table.rows.begin(), table.rows.end(), need);
    need(table.reference);
  }
  Progress progress("comparing on " + data, std::ssize(needed), "runs");
  for (const TrainedRun& trained : runs) {
    if (!needed.contains({trained.name, trained.seed()})) continue;
    MeasuredRun& measured = measured_[{trained.name, trained.seed()}];
    measured.trained = &trained;
    measured.rows =
        compared_rows(trained.run, trained.units, sweep_comparison(sweep, trained, data));
    const std::string results = trained.run.layout.results().string();
    measured.models = parse_json(read_text(results), results).at("models");
    progress.update(std::ssize(measured_));
  }
}

std::vector<RowPlace> MeasuredRuns::chosen(const SweepTable& table, const RowChoice& choice) const {
  std::vector<RowPlace> places;
  for (const std::string& run : choice.runs) {
    const MeasuredRun& measured = this->measured(run, table.seeds[0]);
    const int64_t own_prefix = measured.trained->run.experiment.mixture.prefix_tokens;
    const auto agrees = [&](const ComparedRow& row) {
      bool as_trained = row.kind->role != Role::mixture || row.rule == kByRouters;
      if (row.kind->merges_experts()) as_trained = row.rule.empty();
      // Without a prefix, or with all of the sequence for one, there is nothing to choose.
      const bool has_prefix = row.prefix > 0 && row.rule != kInHindsight;
      return (choice.models.empty() || holds(choice.models, std::string(row.kind->name))) &&
             (choice.rules.empty() ? as_trained : holds(choice.rules, row.rule)) &&
             (choice.steps.empty() ? row.step == 0 : holds(choice.steps, row.step)) &&
             (!has_prefix || (choice.prefixes.empty() ? row.prefix == own_prefix
                                                      : holds(choice.prefixes, row.prefix)));
    };
    for (size_t r = 0; r < measured.rows.rows.size(); ++r) {
      if (agrees(measured.rows.rows[r])) places.push_back({run, r});
    }
  }
  if (places.empty()) {
    throw Error(fmt::format("table {}: no row is of {}", table.name, describe(choice)));
  }
  return places;
}

RowPlace MeasuredRuns::reference_of(const SweepTable& table, const RowPlace& place) const {
  std::vector<RowPlace> candidates = chosen(table, table.reference);
  const auto prefer = [&](const auto& test) {
    std::vector<RowPlace> preferred;
    std::copy_if(candidates.begin(), candidates.end(), std::back_inserter(preferred), test);
    if (!preferred.empty()) candidates = preferred;
  };
  const uint64_t seed = table.seeds[0];
  const ComparedRow& own = row(place, seed);
  prefer([&](const RowPlace& other) { return other.run == place.run; });
  prefer([&](const RowPlace& other) { return row(other, seed).prefix == own.prefix; });
  prefer([&](const RowPlace& other) { return row(other, seed).step == own.step; });
  if (candidates.size() != 1) {
    throw Error(fmt::format("table {}: {} rows are the reference ({}) of a row of run {}",
                            table.name, candidates.size(), describe(table.reference), place.run));
  }
  return candidates[0];
}

std::vector<double> MeasuredRuns::mean_log_likelihoods(const RowPlace& place,
                                                       const std::vector<uint64_t>& seeds) const {
  std::vector<double> sums;
  for (const uint64_t seed : seeds) {
    const auto& values = measured(place.run, seed).rows.log_likelihoods[place.index];
    sums.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      sums[i] += values[i] / static_cast<double>(seeds.size());
    }
  }
  return sums;
}

void MeasuredRuns::require_same_sequences(const SweepTable& table, const RowPlace& a,
                                          const RowPlace& b) const {
  const RunRows& first = measured(a.run, table.seeds[0]).rows;
  for (const uint64_t seed : table.seeds) {
    for (const RowPlace& place : {a, b}) {
      const RunRows& other = measured(place.run, seed).rows;
      if (other.tokens == first.tokens && other.seq_length == first.seq_length) continue;
      throw Error(fmt::format("table {}: {} and {} were not measured on the same sequences",
                              table.name,
                              measured(a.run, table.seeds[0]).trained->run.layout.root.string(),
                              measured(place.run, seed).trained->run.layout.root.string()));
    }
  }
}

SweepRow MeasuredRuns::figures(const SweepTable& table, const RowPlace& place) const {
  const RowPlace reference = reference_of(table, place);
  require_same_sequences(table, place, reference);
  SweepRow filled;
  filled.run = place.run;
  filled.figures = row(place, table.seeds[0]);
  filled.is_reference = place == reference;
  filled.reference = full_name(reference.run, row(reference, table.seeds[0]));
  filled.train_flops = measured(place.run, table.seeds[0]).train_flops(filled.figures);
  std::vector<double> nats, bits;
  for (const uint64_t seed : table.seeds) {
    const ComparedRow& of_seed = row(place, seed);
    nats.push_back(of_seed.nats_per_token);
    bits.push_back(of_seed.bits_per_byte);
    filled.perplexities.push_back(of_seed.perplexity);
    filled.seed_differences.push_back(of_seed.nats_per_token - row(reference, seed).nats_per_token);
  }
  filled.figures.nats_per_token = mean(nats);
  filled.figures.perplexity = std::exp(mean(nats));
  filled.figures.bits_per_byte = mean(bits);
  filled.figures.difference = difference_of(
      mean_log_likelihoods(place, table.seeds), mean_log_likelihoods(reference, table.seeds),
      measured(place.run, table.seeds[0]).rows, kResamples, kBootstrapSeed);
  return filled;
}

FilledTable MeasuredRuns::fill(const SweepTable& table) const {
  FilledTable filled;
  filled.table = table;
  std::vector<RowPlace> places;
  for (const RowChoice& choice : table.rows) {
    for (const RowPlace& place : chosen(table, choice)) {
      if (holds(places, place)) continue;
      places.push_back(place);
      filled.rows.push_back(figures(table, place));
      filled.rows.back().label = choice.label;
    }
  }
  const RunRows& any = measured(places[0].run, table.seeds[0]).rows;
  filled.num_sequences = std::ssize(any.documents);
  filled.num_documents = std::ssize(std::set(any.documents.begin(), any.documents.end()));
  return filled;
}

}  // namespace

std::vector<FilledTable> fill_tables(const Sweep& sweep, const std::vector<TrainedRun>& runs) {
  std::map<std::string, MeasuredRuns> measured;  // by data
  std::vector<FilledTable> tables;
  for (const SweepTable& table : sweep.tables) {
    if (!measured.contains(table.data)) {
      measured.emplace(table.data, MeasuredRuns(sweep, runs, table.data));
    }
    tables.push_back(measured.at(table.data).fill(table));
  }
  return tables;
}

CompareOptions sweep_comparison(const Sweep& sweep, const TrainedRun& trained,
                                const std::string& data) {
  const Experiment& experiment = trained.run.experiment;
  const Sweep::Needs needs = sweep.needs_of(trained.name);
  const std::vector<int64_t> usual = default_prefixes(experiment);
  std::set<int64_t> prefixes(usual.begin(), usual.end());
  for (const int64_t prefix : needs.prefixes) {
    if (prefix <= experiment.data.seq_length) prefixes.insert(prefix);
  }
  CompareOptions options;
  options.split = data;
  options.prefixes.assign(prefixes.begin(), prefixes.end());
  if (needs.data.contains(data)) options.steps = needs.data.at(data);
  return options;
}

}  // namespace smalltalk
