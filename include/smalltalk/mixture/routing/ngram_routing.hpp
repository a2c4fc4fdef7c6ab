// What the routers' assignments of some sequences tell of all others: n-grams of a prefix
// (ngram_classifier.hpp) say which expert it would be given to, at next to no cost.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "smalltalk/core/assignment/ngram_classifier.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// From sequences of the training tokens, ids or empty for 0 .. N - 1, by their first
// mixture.prefix_tokens tokens, and their experts [N]. Throws Stopped.
NgramClassifier learn_experts(const Run& run, const TokenFile& tokens,
                              std::span<const uint64_t> sequences,
                              std::span<const uint16_t> experts);

// From the parts that routers were trained on in the last rounds of their EM, in
// MixtureConfig::rounds_that_teach(). Error: the file of a round is missing or damaged.
NgramClassifier learn_rounds(const Run& run);

// The logarithms of the experts' probabilities, by the first `prefix` tokens of `count` sequences
// from `first` on: [count, E]. Throws Stopped.
std::vector<float> rate_sequences(const NgramClassifier& classifier, const TokenFile& tokens,
                                  int64_t seq_length, int64_t prefix, int64_t first, int64_t count);

}  // namespace smalltalk
