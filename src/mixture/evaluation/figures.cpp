#include "mixture/evaluation/figures.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace smalltalk {

SequenceLikelihoods sum_by_sequence(const TokenLikelihoods& model, int64_t prefix_tokens) {
  SequenceLikelihoods sums;
  for (int64_t i = 0; i < model.num_sequences(); ++i) {
    const auto targets = model.row(i);
    const auto behind = targets.begin() + (prefix_tokens - 1);
    sums.prefix.push_back(std::accumulate(targets.begin(), behind, 0.0));
    sums.rest.push_back(std::accumulate(behind, targets.end(), 0.0));
  }
  return sums;
}

TokenLikelihoods merged_once(TokenLikelihoods by_first, const TokenLikelihoods& by_segments,
                             int64_t segment_tokens) {
  for (int64_t i = 0; i < by_first.num_sequences(); ++i) {
    std::ranges::copy(by_segments.row(i).first(static_cast<size_t>(segment_tokens)),
                      by_first.row(i).begin());
  }
  return by_first;
}

SequenceLikelihoods under_assignment(std::span<const SequenceLikelihoods> models,
                                     const Assignment& assignment) {
  SequenceLikelihoods chosen;
  for (size_t i = 0; i < assignment.size(); ++i) {
    chosen.prefix.push_back(models[assignment[i]].prefix[i]);
    chosen.rest.push_back(models[assignment[i]].rest[i]);
  }
  return chosen;
}

Assignment best_in_hindsight(std::span<const SequenceLikelihoods> models) {
  Assignment best(models[0].prefix.size(), 0);
  const auto whole = [&](size_t model, size_t i) {
    return models[model].prefix[i] + models[model].rest[i];
  };
  for (size_t i = 0; i < best.size(); ++i) {
    for (size_t e = 1; e < models.size(); ++e) {
      if (whole(e, i) > whole(best[i], i)) best[i] = static_cast<uint16_t>(e);
    }
  }
  return best;
}

double total(const SequenceLikelihoods& sequences) {
  const double rest = std::accumulate(sequences.rest.begin(), sequences.rest.end(), 0.0);
  return std::accumulate(sequences.prefix.begin(), sequences.prefix.end(), rest);
}

Perplexity perplexity(const SequenceLikelihoods& sequences, std::span<const int64_t> targets,
                      int64_t prefix_tokens) {
  ST_CHECK(targets.size() == sequences.prefix.size());
  int64_t all = 0, behind_prefix = 0;
  for (const int64_t count : targets) {
    all += count;
    behind_prefix += std::max<int64_t>(0, count - (prefix_tokens - 1));
  }
  const double rest = std::accumulate(sequences.rest.begin(), sequences.rest.end(), 0.0);
  return {std::exp(-total(sequences) / static_cast<double>(all)),
          std::exp(-rest / static_cast<double>(behind_prefix))};
}

std::optional<double> perplexity_where(const SequenceLikelihoods& sequences,
                                       std::span<const uint16_t> labels, uint16_t label,
                                       std::span<const int64_t> targets) {
  double nats = 0;
  int64_t count = 0;
  ST_CHECK(labels.size() == sequences.prefix.size() && labels.size() == targets.size());
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] != label) continue;
    nats -= sequences.prefix[i] + sequences.rest[i];
    count += targets[i];
  }
  if (count == 0) return std::nullopt;
  return std::exp(nats / static_cast<double>(count));
}

RoutingOfDomains routing_of_domains(const Assignment& route, std::span<const uint16_t> domain,
                                    int64_t num_experts, int64_t num_domains) {
  ST_CHECK(route.size() == domain.size());
  const auto domains = static_cast<size_t>(num_domains);
  std::vector<std::vector<int64_t>> count(static_cast<size_t>(num_experts),
                                          std::vector<int64_t>(domains, 0));
  for (size_t i = 0; i < route.size(); ++i) ++count[route[i]][domain[i]];

  RoutingOfDomains result;
  result.expert_by_domain.assign(count.size(), std::vector<double>(domains, 0.0));
  int64_t with_their_domain = 0;
  for (size_t d = 0; d < domains; ++d) {
    int64_t all = 0;
    int64_t most = 0;
    for (const auto& row : count) {
      all += row[d];
      most = std::max(most, row[d]);
    }
    with_their_domain += most;
    if (all == 0) continue;
    for (size_t e = 0; e < count.size(); ++e) {
      result.expert_by_domain[e][d] = static_cast<double>(count[e][d]) / static_cast<double>(all);
    }
  }
  int64_t of_largest_domain = 0;
  for (const auto& row : count) of_largest_domain += *std::ranges::max_element(row);
  const auto n = static_cast<double>(route.size());
  result.purity = static_cast<double>(with_their_domain) / n;
  result.largest_domain_share = static_cast<double>(of_largest_domain) / n;
  return result;
}

std::vector<ExpertFigures> figures_by_expert(const Assignment& route, int64_t num_experts,
                                             const SequenceLikelihoods& mixture,
                                             const SequenceLikelihoods* dense,
                                             std::span<const int64_t> targets) {
  std::vector<ExpertFigures> experts;
  for (int64_t e = 0; e < num_experts; ++e) {
    const auto label = static_cast<uint16_t>(e);
    ExpertFigures& expert = experts.emplace_back();
    expert.eval_share =
        static_cast<double>(std::ranges::count(route, label)) / static_cast<double>(route.size());
    expert.perplexity = perplexity_where(mixture, route, label, targets);
    if (dense != nullptr) {
      expert.dense_perplexity = perplexity_where(*dense, route, label, targets);
    }
  }
  return experts;
}

ModelCosts costs_of(const Experiment& experiment, const TrainedModel& model,
                    const MixtureFlops& mixture, const ClusterFlops& clusters) {
  ModelCosts costs;
  double units = 0;
  for (const TrainUnit* unit : model.units) {
    units += unit_flops(experiment, *unit);
    costs.train_tokens += unit->train.steps * unit->train.batch_size * experiment.data.seq_length;
  }
  costs.inference_flops =
      forward_flops(model.kind->model(experiment), 1, experiment.data.seq_length);
  if (model.kind->chosen_by == ChosenBy::routers) {
    costs.router_flops = mixture.router_train_upper + mixture.router_scoring;
    costs.sharding_flops = mixture.sharding;
    costs.inference_flops = mixture.inference_per_sequence;
  } else if (model.kind->chosen_by == ChosenBy::nearest_cluster) {
    costs.sharding_flops = clusters.sharding;
    costs.inference_flops += clusters.choice;
  }
  costs.train_flops = units + costs.router_flops + costs.sharding_flops;
  return costs;
}

}  // namespace smalltalk
