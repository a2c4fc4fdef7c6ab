// Whether a difference would have come out the same on other documents: the paired bootstrap
// (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; for two systems on the same
// texts Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

double mean(std::span<const double> values);  // REQUIRES one at least

struct Interval {
  double mean = 0;
  double low = 0, high = 0;  // 95 % of the resamples lie between them
};

// Of sum(values) / sum(weights), when the documents are drawn with replacement: item i belongs to
// document of_item[i] and is drawn with it. A function of the arguments alone. REQUIRES as many
// weights, all positive, and documents as values, of which there is one at least (else Error).
Interval bootstrap_ratio(std::span<const double> values, std::span<const double> weights,
                         std::span<const uint64_t> of_item, int64_t resamples, uint64_t seed);

// Of a difference of losses: "better" if all of the interval is below 0, "worse" if above, else
// "undecided".
std::string verdict(const Interval& difference);

}  // namespace smalltalk
