// The figures of results.json as functions of values: what models make of sequences, who routed
// them where, what domains they are of. N sequences of S targets, of which the last may be padding
// (`targets` [N] counts the others); the M tokens of a prefix hold M - 1 targets, as the first
// token is given. Nats; higher is better.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/mixture/evaluation/routing_rules.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

// Log-likelihoods of sequences under one model, or each under its own.
struct SequenceLikelihoods {
  std::vector<double> prefix;  // [N] of its M - 1 targets
  std::vector<double> rest;    // [N] of the S - (M - 1) behind it
};
SequenceLikelihoods sum_by_sequence(const TokenLikelihoods& model, int64_t prefix_tokens);
// Under a Lory model whose first segments decide for all that follow: theirs as where it is merged
// by segments, since that decision sees them.
TokenLikelihoods merged_once(TokenLikelihoods by_first, const TokenLikelihoods& by_segments,
                             int64_t segment_tokens);
// Each sequence under the model that it is assigned to.
SequenceLikelihoods under_assignment(std::span<const SequenceLikelihoods> models,
                                     const Assignment& assignment);
// The model that does best on all of each sequence, of equals the first: how much a choice by the
// prefix leaves on the table.
Assignment best_in_hindsight(std::span<const SequenceLikelihoods> models);
double total(const SequenceLikelihoods& sequences);

// e to the mean loss of a target.
struct Perplexity {
  double all = 0;
  double after_prefix = 0;
};
Perplexity perplexity(const SequenceLikelihoods& sequences, std::span<const int64_t> targets,
                      int64_t prefix_tokens);
// Over all targets of the sequences with that label, of a domain or an expert; none without one.
std::optional<double> perplexity_where(const SequenceLikelihoods& sequences,
                                       std::span<const uint16_t> labels, uint16_t label,
                                       std::span<const int64_t> targets);

struct RoutingOfDomains {
  double purity = 0;                // share of sequences that go where most of their domain goes
  double largest_domain_share = 0;  // share of those whose domain is the largest of their expert
  std::vector<std::vector<double>> expert_by_domain;  // [E][domains] share of the domain
};
RoutingOfDomains routing_of_domains(const Assignment& route, std::span<const uint16_t> domain,
                                    int64_t num_experts, int64_t num_domains);

struct ExpertFigures {
  double eval_share = 0;                               // of the sequences, that come to it
  std::optional<double> perplexity, dense_perplexity;  // of these, under it and a dense model
};
// [E]. `dense` may be null.
std::vector<ExpertFigures> figures_by_expert(const Assignment& route, int64_t num_experts,
                                             const SequenceLikelihoods& mixture,
                                             const SequenceLikelihoods* dense,
                                             std::span<const int64_t> targets);

// FLOPs of the clusters that a control chooses its experts by.
struct ClusterFlops {
  double sharding = 0;  // finding the clusters and assigning the training text
  double choice = 0;    // finding the nearest to a prefix
};
struct ModelCosts {
  int64_t train_tokens = 0;
  double train_flops = 0;  // of all that it took: its units, routers and sharding
  double router_flops = 0;
  double sharding_flops = 0;
  double inference_flops = 0;  // of a sequence, the choice of its expert included
};
ModelCosts costs_of(const Experiment& experiment, const TrainedModel& model,
                    const MixtureFlops& mixture, const ClusterFlops& clusters);

}  // namespace smalltalk
