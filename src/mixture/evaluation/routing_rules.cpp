#include "smalltalk/mixture/evaluation/routing_rules.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

double sum_of(std::span<const float> row) { return std::accumulate(row.begin(), row.end(), 0.0); }

int64_t num_sequences(std::span<const TokenLikelihoods> models) {
  ST_CHECK(!models.empty());
  for (const TokenLikelihoods& model : models) {
    ST_CHECK(model.num_sequences() == models[0].num_sequences() &&
             model.num_experts() == models[0].num_experts());
  }
  return models[0].num_sequences();
}

}  // namespace

ScoreMatrix prefix_scores(std::span<const TokenLikelihoods> models, int64_t prefix) {
  const int64_t n = num_sequences(models);
  ST_CHECK(prefix >= 2 && prefix <= models[0].num_experts() + 1);
  ScoreMatrix scores(n, std::ssize(models));
  for (size_t e = 0; e < models.size(); ++e) {
    for (int64_t i = 0; i < n; ++i) {
      const auto row = models[e].row(i).first(static_cast<size_t>(prefix - 1));
      scores.row(i)[e] = static_cast<float>(sum_of(row));
    }
  }
  return scores;
}

Assignment round_robin(int64_t num_sequences, int64_t num_experts) {
  Assignment assignment(static_cast<size_t>(num_sequences));
  for (size_t i = 0; i < assignment.size(); ++i) {
    assignment[i] = static_cast<uint16_t>(i % static_cast<size_t>(num_experts));
  }
  return assignment;
}

std::vector<uint16_t> best_expert_of_domains(std::span<const TokenLikelihoods> experts,
                                             std::span<const uint16_t> domain,
                                             int64_t num_domains) {
  const int64_t n = num_sequences(experts);
  ST_CHECK(std::ssize(domain) == n);
  // Of every domain, and, behind them, of all.
  std::vector<std::vector<double>> sums(static_cast<size_t>(num_domains + 1),
                                        std::vector<double>(experts.size(), 0.0));
  std::vector<bool> seen(static_cast<size_t>(num_domains), false);
  for (int64_t i = 0; i < n; ++i) {
    const size_t d = domain[static_cast<size_t>(i)];
    seen.at(d) = true;
    for (size_t e = 0; e < experts.size(); ++e) {
      const double sum = sum_of(experts[e].row(i));
      sums[d][e] += sum;
      sums.back()[e] += sum;
    }
  }
  std::vector<uint16_t> best;
  for (size_t d = 0; d < seen.size(); ++d) {
    const std::vector<double>& of_domain = seen[d] ? sums[d] : sums.back();
    best.push_back(static_cast<uint16_t>(std::max_element(of_domain.begin(), of_domain.end()) -
                                         of_domain.begin()));
  }
  return best;
}

ScoreMatrix posterior(const ScoreMatrix& scores, int64_t top, double temperature) {
  const int64_t experts = scores.num_experts();
  ST_CHECK(top >= 1 && top <= experts && temperature > 0);
  ScoreMatrix weights(scores.num_sequences(), experts);
  std::vector<int64_t> order(static_cast<size_t>(experts));
  for (int64_t i = 0; i < scores.num_sequences(); ++i) {
    const std::span<const float> row = scores.row(i);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + top, order.end(), [&](int64_t a, int64_t b) {
      return row[a] != row[b] ? row[a] > row[b] : a < b;
    });
    const auto weight = [&](int64_t k) {
      const double distance = static_cast<double>(row[order[k]]) - row[order[0]];
      return std::exp(distance / temperature);
    };
    double sum = 0;
    for (int64_t k = 0; k < top; ++k) sum += weight(k);
    for (int64_t k = 0; k < top; ++k) {
      weights.row(i)[order[k]] = static_cast<float>(weight(k) / sum);
    }
  }
  return weights;
}

std::vector<double> under_assignment(std::span<const TokenLikelihoods> experts,
                                     const Assignment& assignment) {
  ST_CHECK(std::ssize(assignment) == num_sequences(experts));
  std::vector<double> result;
  for (size_t i = 0; i < assignment.size(); ++i) {
    result.push_back(sum_of(experts[assignment[i]].row(static_cast<int64_t>(i))));
  }
  return result;
}

std::vector<double> under_ensemble(std::span<const TokenLikelihoods> experts,
                                   const ScoreMatrix& weights) {
  const int64_t n = num_sequences(experts);
  ST_CHECK(weights.num_sequences() == n && weights.num_experts() == std::ssize(experts));
  const auto targets = static_cast<size_t>(experts[0].num_experts());
  std::vector<double> result;
  std::vector<double> probability(targets);
  for (int64_t i = 0; i < n; ++i) {
    std::fill(probability.begin(), probability.end(), 0.0);
    for (size_t e = 0; e < experts.size(); ++e) {
      const double weight = weights.row(i)[e];
      if (weight == 0) continue;
      const std::span<const float> row = experts[e].row(i);
      for (size_t s = 0; s < targets; ++s) probability[s] += weight * std::exp(double{row[s]});
    }
    double sum = 0;
    for (const double p : probability) sum += std::log(p);
    result.push_back(sum);
  }
  return result;
}

}  // namespace smalltalk
