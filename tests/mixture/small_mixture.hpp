// A mixture so small that all of its numbers can be worked out on paper: two experts, five
// sequences of four targets, a prefix of three tokens (two targets). Its cells are written as bits:
// 3 stands for a probability of 1/8, and a perplexity is 2 to the mean.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/mixture/evaluation/routing_rules.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk::small {

using Bits = std::vector<std::vector<double>>;  // [N][S]

inline TokenLikelihoods likelihoods(const Bits& bits) {
  TokenLikelihoods cell(std::ssize(bits), std::ssize(bits[0]));
  for (size_t i = 0; i < bits.size(); ++i) {
    for (size_t s = 0; s < bits[i].size(); ++s) {
      cell.row(static_cast<int64_t>(i))[s] = static_cast<float>(-bits[i][s] * std::log(2.0));
    }
  }
  return cell;
}
inline Bits everywhere(double bits, size_t sequences) {
  return Bits(sequences, std::vector<double>(4, bits));
}

// FLOPs of a token among `s` (flops.hpp). Of an expert, H = 2, V = 8, two matrices of 2 x 4:
//   embedding 2, query, key, value, output 4 x 8 = 32, scores and mixing 8 s, feed-forward 32,
//   logits 32, softmax 24: 122 + 8 s. Of a router, whose matrices are 2 x 2: 106 + 8 s.
// One sequence:            4 tokens                3 tokens                2 tokens
//   expert                 4 x 154 = 616           3 x 146 = 438           2 x 138 = 276
//   router                 4 x 138 = 552           3 x 130 = 390           2 x 122 = 244
// Two rounds of five sequences, two routers, three steps of two sequences an expert, seven training
// sequences; training takes three times the forward pass:
//   routers' training      3 x 10 x 552            = 16,560 (billed for whole sequences)
//   routers' scoring       2 x 10 x 390            =  7,800
//   sharding               2 x 7 x 390             =  5,460
//   experts                2 x 3 x (3 x 2 x 616)   = 22,176
//   all                                            = 51,996
constexpr int64_t kTrainSequences = 7;

inline Experiment experiment() {
  Experiment experiment;
  experiment.name = "small";
  experiment.data.seq_length = 4;
  experiment.mixture.experts = 2;
  experiment.mixture.prefix_tokens = 3;
  experiment.mixture.rounds = 2;
  experiment.mixture.sequences_per_round = 5;
  ModelConfig& expert = experiment.expert_model;
  expert.hidden_size = 2;
  expert.num_layers = 1;
  expert.num_heads = 1;
  expert.vocab_size = 8;
  expert.feed_forward = FeedForward::relu2;
  expert.intermediate_size = 4;
  experiment.router_model = expert;
  experiment.router_model.intermediate_size = 2;
  experiment.expert_train.steps = 3;
  experiment.expert_train.batch_size = 2;
  experiment.expert_train.warmup_steps = 1;
  return experiment;
}

// Of the text that is measured. Sums of a sequence, in the prefix and behind it, on the right.
inline const std::map<std::string, Bits>& cells() {
  static const std::map<std::string, Bits> kCells = {
      {"experts/0",
       {{1, 1, 1, 1},    // 2 + 2
        {1, 3, 2, 2},    // 4 + 4
        {2, 2, 4, 4},    // 4 + 8
        {3, 3, 3, 3},    // 6 + 6
        {1, 1, 1, 3}}},  // 2 + 4
      {"experts/1",
       {{2, 2, 2, 2},    // 4 + 4
        {1, 1, 3, 1},    // 2 + 4
        {1, 1, 2, 2},    // 2 + 4
        {2, 2, 2, 2},    // 4 + 4
        {3, 3, 0, 0}}},  // 6 + 0
      {"routers/0",
       {{1, 1, 9, 9},    // by three tokens, and by two:  2   1
        {1, 1, 9, 9},    //                               2   1
        {3, 3, 9, 9},    //                               6   3
        {1, 4, 9, 9},    //                               5   1
        {2, 1, 9, 9}}},  //                               3   2
      {"routers/1",
       {{2, 2, 0, 0},    //                               4   2
        {2, 2, 0, 0},    //                               4   2
        {1, 1, 0, 0},    //                               2   1
        {2, 2, 0, 0},    //                               4   2
        {3, 3, 0, 0}}},  //                               6   3
      {"baselines/dense", {{1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}, {2, 2, 2, 2}, {3, 3, 3, 3}}},
      {"baselines/random_shards/0", everywhere(2, 5)},
      {"baselines/random_shards/1", everywhere(3, 5)},
      {"baselines/tfidf_kmeans/0", everywhere(1, 5)},
      {"baselines/tfidf_kmeans/1", everywhere(2, 5)}};
  return kCells;
}
// The routers' choice by three tokens: the lower of the sums above.
inline Assignment route() { return {0, 0, 1, 1, 0}; }

// Of the validation text, of three sequences.
inline const std::map<std::string, Bits>& validation_cells() {
  static const std::map<std::string, Bits> kCells = {
      {"experts/0", {{3, 3, 3, 3}, {1, 1, 1, 1}, {2, 2, 2, 2}}},
      {"experts/1", {{1, 1, 1, 1}, {2, 2, 2, 2}, {2, 2, 2, 2}}},
      {"baselines/dense", everywhere(2, 3)},
      {"baselines/random_shards/0", everywhere(2, 3)},
      {"baselines/random_shards/1", everywhere(3, 3)}};
  return kCells;
}

}  // namespace smalltalk::small
