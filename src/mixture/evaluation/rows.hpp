// The rows of a comparison, from what they are made of: values, and cells that are read when they
// are needed, as all of them at once may be more than memory holds.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "mixture/evaluation/measured_text.hpp"
#include "smalltalk/mixture/evaluation/comparison.hpp"

namespace smalltalk {

struct RowSources {
  MeasuredText text, validation;    // to be compared on; by which domains choose their expert
  std::vector<uint64_t> documents;  // [N] of the text's sequences
  std::function<TokenLikelihoods(const EvalCell&)> cell;
  // Of experts that clusters choose, by so many tokens.
  std::function<Assignment(int64_t prefix)> nearest_cluster;
  std::function<double(int64_t prefix)> cluster_flops;  // of the choice for one sequence
  // Of the mixture's experts, by a classifier of n-grams that has learned from the shards.
  std::function<Assignment(int64_t prefix)> by_ngrams;  // empty: there is none
  std::function<double(int64_t prefix)> ngram_flops;
};

// REQUIRES options that make sense, and prefixes to choose by.
RunRows find_rows(const Experiment& experiment, const std::vector<TrainUnit>& units,
                  const CompareOptions& options, const RowSources& sources);

}  // namespace smalltalk
