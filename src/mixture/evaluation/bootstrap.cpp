#include "smalltalk/mixture/evaluation/bootstrap.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/random.hpp"

namespace smalltalk {

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

Interval bootstrap_ratio(std::span<const double> values, std::span<const double> weights,
                         std::span<const uint64_t> of_item, int64_t resamples, uint64_t seed) {
  if (values.empty() || weights.size() != values.size() || of_item.size() != values.size()) {
    throw Error("a bootstrap needs as many weights and documents as values, and one at least");
  }
  ST_CHECK(resamples >= 1);
  struct Sums {
    double value = 0, weight = 0;
  };
  std::vector<Sums> documents;
  std::unordered_map<uint64_t, size_t> place;
  Sums all;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(weights[i] > 0)) throw Error("a bootstrap's weights must be positive");
    const auto [found, is_new] = place.try_emplace(of_item[i], documents.size());
    if (is_new) documents.emplace_back();
    Sums& document = documents[found->second];
    document.value += values[i];
    document.weight += weights[i];
    all.value += values[i];
    all.weight += weights[i];
  }
  std::vector<double> ratios;
  const auto size = static_cast<uint64_t>(documents.size());
  for (int64_t r = 0; r < resamples; ++r) {
    const uint64_t key = derive_seed(seed, "bootstrap", static_cast<uint64_t>(r));
    Sums drawn;
    std::array<uint32_t, 4> words{};
    for (uint64_t i = 0; i < size; ++i) {
      if (i % 2 == 0) {
        words = philox4x32({static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 0, 0},
                           {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
      }
      const uint64_t word = uint64_t{words[2 * (i % 2)]} << 32 | words[2 * (i % 2) + 1];
      const Sums& document = documents[word % size];
      drawn.value += document.value;
      drawn.weight += document.weight;
    }
    ratios.push_back(drawn.value / drawn.weight);
  }
  std::sort(ratios.begin(), ratios.end());
  const auto quantile = [&](double share) {
    const double place_of = share * static_cast<double>(ratios.size() - 1);
    const auto below = static_cast<size_t>(place_of);
    const auto above = std::min(below + 1, ratios.size() - 1);
    return std::lerp(ratios[below], ratios[above], place_of - static_cast<double>(below));
  };
  return {all.value / all.weight, quantile(0.025), quantile(0.975)};
}

std::string verdict(const Interval& difference) {
  if (difference.high < 0) return "better";
  return difference.low > 0 ? "worse" : "undecided";
}

}  // namespace smalltalk
