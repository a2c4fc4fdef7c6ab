#include "mixture/evaluation/rows.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "mixture/evaluation/figures.hpp"
#include "smalltalk/core/experiment/flops.hpp"

namespace smalltalk {
namespace {

class RowFinder {
 public:
  RowFinder(const Experiment& experiment, const std::vector<TrainUnit>& units,
            const CompareOptions& options, const RowSources& sources)
      : experiment_(experiment),
        options_(options),
        sources_(sources),
        models_(models_of(units)),
        length_(experiment.data.seq_length),
        expert_flops_(forward_flops(experiment.expert_model, 1, length_)) {
    std::ranges::sort(models_, {}, [](const TrainedModel& model) { return model.kind->name; });
  }

  RunRows find();

 private:
  std::vector<TokenLikelihoods> read(const TrainedModel& model, const std::string& split,
                                     int64_t step = 0, const std::string& merging = {}) const;
  void add(ComparedRow row, std::vector<double> log_likelihoods);
  void add_model(const TrainedModel& model, int64_t step);
  void add_routed(const TrainedModel& model, const std::vector<TokenLikelihoods>& experts,
                  int64_t step, std::span<const int64_t> prefixes);
  void add_clustered(const TrainedModel& model, const std::vector<TokenLikelihoods>& experts,
                     int64_t step, std::span<const int64_t> prefixes);
  void add_single(const TrainedModel& model, const std::vector<TokenLikelihoods>& cells,
                  int64_t step);
  void add_mergings(const TrainedModel& model, const TokenLikelihoods& by_segments);
  void add_rules(const TrainedModel& model, const std::vector<TokenLikelihoods>& experts);
  void add_ensembles(const TrainedModel& model, const std::vector<TokenLikelihoods>& experts);
  Assignment by_domain(const TrainedModel& model) const;
  // Of E models of this configuration that read the prefix of one sequence.
  double scoring_flops(const ModelConfig& model, int64_t prefix) const {
    return static_cast<double>(experiment_.mixture.experts) * forward_flops(model, 1, prefix);
  }

  const Experiment& experiment_;
  const CompareOptions& options_;
  const RowSources& sources_;
  std::vector<TrainedModel> models_;  // by name
  int64_t length_;
  double expert_flops_;                    // of one expert and sequence
  std::vector<TokenLikelihoods> routers_;  // [E]
  RunRows result_;
};

std::vector<TokenLikelihoods> RowFinder::read(const TrainedModel& model, const std::string& split,
                                              int64_t step, const std::string& merging) const {
  std::vector<TokenLikelihoods> cells;
  for (const TrainUnit* unit : model.units)
    cells.push_back(sources_.cell({split, unit->name, step, merging}));
  return cells;
}

void RowFinder::add(ComparedRow row, std::vector<double> log_likelihoods) {
  const double nats = -std::accumulate(log_likelihoods.begin(), log_likelihoods.end(), 0.0);
  const std::vector<int64_t>& counts = sources_.text.targets;
  const int64_t targets = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  row.nats_per_token = nats / static_cast<double>(targets);
  row.perplexity = std::exp(row.nats_per_token);
  row.bits_per_byte = bits_per_byte(nats, targets, sources_.text.info);
  result_.rows.push_back(std::move(row));
  result_.log_likelihoods.push_back(std::move(log_likelihoods));
}

Assignment RowFinder::by_domain(const TrainedModel& model) const {
  const MeasuredText& known = sources_.validation;
  const MeasuredText& here = sources_.text;
  const std::vector<uint16_t> best =
      best_expert_of_domains(read(model, "validation"), known.domain, std::ssize(known.domains));
  Assignment assignment;
  for (const uint16_t d : here.domain) {
    // The texts number the domains by themselves.
    const auto found = std::ranges::find(known.domains, here.domains[d]);
    assignment.push_back(found == known.domains.end() ? best[0]
                                                      : best[found - known.domains.begin()]);
  }
  return assignment;
}

// As a mixture is trained to be used.
void RowFinder::add_routed(const TrainedModel& model, const std::vector<TokenLikelihoods>& experts,
                           int64_t step, std::span<const int64_t> prefixes) {
  for (const int64_t prefix : prefixes) {
    ComparedRow row{model.kind, kByRouters, prefix};
    row.step = step;
    row.flops_per_sequence = expert_flops_ + scoring_flops(experiment_.router_model, prefix);
    add(row, under_assignment(experts, argmax_assignment(prefix_scores(routers_, prefix))));
  }
}

void RowFinder::add_clustered(const TrainedModel& model,
                              const std::vector<TokenLikelihoods>& experts, int64_t step,
                              std::span<const int64_t> prefixes) {
  for (const int64_t prefix : prefixes) {
    ComparedRow row{model.kind, "TF-IDF", prefix};
    row.step = step;
    row.flops_per_sequence = expert_flops_ + sources_.cluster_flops(prefix);
    add(row, under_assignment(experts, sources_.nearest_cluster(prefix)));
  }
}

// Other ways to choose one of the experts that routers choose.
void RowFinder::add_rules(const TrainedModel& model, const std::vector<TokenLikelihoods>& experts) {
  const auto count = std::ssize(experts);
  const auto add_assignment = [&](const std::string& rule, int64_t prefix, double flops,
                                  const Assignment& assignment) {
    ComparedRow row{model.kind, rule, prefix};
    row.flops_per_sequence = flops;
    add(row, under_assignment(experts, assignment));
  };
  for (const int64_t prefix : options_.prefixes) {
    add_assignment("experts as routers", prefix,
                   expert_flops_ + scoring_flops(experiment_.expert_model, prefix),
                   argmax_assignment(prefix_scores(experts, prefix)));
  }
  for (const int64_t prefix : options_.prefixes) {
    if (!sources_.by_ngrams) break;
    add_assignment(kByNgrams, prefix, expert_flops_ + sources_.ngram_flops(prefix),
                   sources_.by_ngrams(prefix));
  }
  add_assignment("domain label", 0, expert_flops_, by_domain(model));
  add_assignment("in turn", 0, expert_flops_, round_robin(experts[0].num_sequences(), count));
  add_assignment(kInHindsight, length_, static_cast<double>(count) * expert_flops_,
                 argmax_assignment(prefix_scores(experts, length_ + 1)));
}

void RowFinder::add_ensembles(const TrainedModel& model,
                              const std::vector<TokenLikelihoods>& experts) {
  const auto count = std::ssize(experts);
  const auto add_ensemble = [&](ComparedRow row, double routing, const ScoreMatrix& weights) {
    row.flops_per_sequence = static_cast<double>(row.experts) * expert_flops_ + routing;
    add(row, under_ensemble(experts, weights));
  };
  const int64_t prefix = experiment_.mixture.prefix_tokens;
  const ScoreMatrix scores = prefix_scores(routers_, prefix);
  for (const double temperature : options_.temperatures) {
    for (int64_t top = 2; top < 2 * count; top *= 2) {
      const int64_t size = std::min<int64_t>(top, count);
      add_ensemble({model.kind, "ensemble by posterior", prefix, size, temperature},
                   scoring_flops(experiment_.router_model, prefix),
                   posterior(scores, size, temperature));
    }
  }
  const ScoreMatrix none(experts[0].num_sequences(), count);
  add_ensemble({model.kind, "ensemble of equals", 0, count}, 0, posterior(none, count, 1));
}

// A checkpoint (step > 0) is compared as its model is used, by the prefix it is trained for.
void RowFinder::add_model(const TrainedModel& model, int64_t step) {
  const std::vector<TokenLikelihoods> cells = read(model, options_.split, step);
  const int64_t own_prefix[] = {experiment_.mixture.prefix_tokens};
  const std::span<const int64_t> prefixes =
      step > 0 ? std::span<const int64_t>(own_prefix) : options_.prefixes;
  if (model.kind->chosen_by == ChosenBy::routers) {
    add_routed(model, cells, step, prefixes);
    if (step > 0) return;
    add_rules(model, cells);
    add_ensembles(model, cells);
  } else if (model.kind->chosen_by == ChosenBy::nearest_cluster) {
    add_clustered(model, cells, step, prefixes);
  } else {
    add_single(model, cells, step);
  }
}

void RowFinder::add_single(const TrainedModel& model, const std::vector<TokenLikelihoods>& cells,
                           int64_t step) {
  ComparedRow row{model.kind, cells.size() > 1 ? "in turn" : ""};
  row.step = step;
  row.flops_per_sequence = forward_flops(model.kind->model(experiment_), 1, length_);
  add(row, under_assignment(cells, round_robin(cells[0].num_sequences(), std::ssize(cells))));
  if (model.kind->merges_experts() && step == 0) add_mergings(model, cells[0]);
}

// Other ways to merge the experts of a Lory model, one of which knows more than it should.
void RowFinder::add_mergings(const TrainedModel& model, const TokenLikelihoods& by_segments) {
  const Assignment itself(static_cast<size_t>(by_segments.num_sequences()), 0);
  ModelConfig config = model.kind->model(experiment_);
  ComparedRow leaky{model.kind, "first segment leaks"};
  leaky.flops_per_sequence = forward_flops(config, 1, length_);
  add(leaky, under_assignment(read(model, options_.split, 0, kLeaky), itself));
  std::vector<TokenLikelihoods> by_first = read(model, options_.split, 0, kByFirstSegment);
  by_first[0] = merged_once(std::move(by_first[0]), by_segments, config.segment_tokens);
  ComparedRow once{model.kind, "merged once", config.segment_tokens};
  config.segment_tokens = length_;
  once.flops_per_sequence = forward_flops(config, 1, length_);
  add(once, under_assignment(by_first, itself));
}

RunRows RowFinder::find() {
  for (const EvalCell& cell : router_cells(options_.split, experiment_.mixture.experts)) {
    routers_.push_back(sources_.cell(cell));
  }
  for (const bool mixture : {false, true}) {  // which has many rows, and comes last
    for (const TrainedModel& model : models_) {
      if ((model.kind->role == Role::mixture) == mixture) add_model(model, 0);
    }
  }
  for (const TrainedModel& model : models_) {
    for (const int64_t step : options_.steps) {
      if (model.units[0]->passes(step)) add_model(model, step);
    }
  }
  result_.documents = sources_.documents;
  result_.seq_length = length_;
  result_.targets.assign(sources_.text.targets.begin(), sources_.text.targets.end());
  result_.tokens = sources_.text.info.content_hash;
  return std::move(result_);
}

}  // namespace

RunRows find_rows(const Experiment& experiment, const std::vector<TrainUnit>& units,
                  const CompareOptions& options, const RowSources& sources) {
  return RowFinder(experiment, units, options, sources).find();
}

}  // namespace smalltalk
