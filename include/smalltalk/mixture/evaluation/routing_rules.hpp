// Ways to choose among the experts of a trained mixture, as arithmetic on cached log-likelihoods:
// every (model, split) pair is scored once, token by token, and any rule is a sum over those.
// N sequences, S targets each, E experts; log-likelihoods in nats, higher is better.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/assignment/score_matrix.hpp"

namespace smalltalk {

// Of one model on one split: values.row(i)[s] = log p(token s + 1 of sequence i | those before).
using TokenLikelihoods = ScoreMatrix;  // [N, S]

// Log-likelihood of the first `prefix` tokens of each sequence under each model: [N, E]. The first
// token is given, so that a prefix of S + 1 is all of the sequence. REQUIRES 2 <= prefix <= S + 1.
ScoreMatrix prefix_scores(std::span<const TokenLikelihoods> models, int64_t prefix);

// Sequences in turn, as a router that knows nothing would deal them out.
Assignment round_robin(int64_t num_sequences, int64_t num_experts);
// The expert that does best on each domain's sequences of another split: what domain labels would
// be worth. A domain that the other split lacks goes to the expert that does best on all of it.
std::vector<uint16_t> best_expert_of_domains(std::span<const TokenLikelihoods> experts,
                                             std::span<const uint16_t> domain, int64_t num_domains);

// p(expert | prefix) by Bayes with equal priors: softmax of scores / temperature over the `top`
// best experts, 0 for the others. [N, E]. The limit of temperature 0 is the argmax.
ScoreMatrix posterior(const ScoreMatrix& scores, int64_t top, double temperature);

// Log-likelihood of all S targets of each sequence [N]: each under its expert, or under the mixture
// of the experts' next-token probabilities with these weights [N, E].
std::vector<double> under_assignment(std::span<const TokenLikelihoods> experts,
                                     const Assignment& assignment);
std::vector<double> under_ensemble(std::span<const TokenLikelihoods> experts,
                                   const ScoreMatrix& weights);

}  // namespace smalltalk
