#include "smalltalk/lm/model/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

void check_sampling(const SamplingOptions& options) {
  if (!(options.temperature >= 0)) throw Error("the temperature must be 0 or more");
  if (options.top_k < 0) throw Error("top_k must be 0 or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) throw Error("top_p must be in (0, 1]");
}

int64_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                     double uniform) {
  ST_CHECK(!logits.empty());
  for (const float logit : logits) {
    if (!std::isfinite(logit)) throw Error("the model's logits are not finite");
  }
  std::vector<int64_t> tokens(logits.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto likelier = [&](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (options.temperature == 0) {
    return *std::min_element(tokens.begin(), tokens.end(), likelier);
  }
  const auto all = std::ssize(tokens);
  const auto kept = options.top_k == 0 ? all : std::min<ptrdiff_t>(options.top_k, all);
  std::partial_sort(tokens.begin(), tokens.begin() + kept, tokens.end(), likelier);
  tokens.resize(static_cast<size_t>(kept));
  std::vector<double> cumulative;
  double sum = 0;
  for (const int64_t token : tokens) {
    const double distance = static_cast<double>(logits[token]) - logits[tokens[0]];
    cumulative.push_back(sum += std::exp(distance / options.temperature));
  }
  // The first tokens that reach top_p, the one that does it included.
  const auto end = std::lower_bound(cumulative.begin(), cumulative.end() - 1, options.top_p * sum);
  const auto drawn = std::upper_bound(cumulative.begin(), end, uniform * *end);
  return tokens[static_cast<size_t>(drawn - cumulative.begin())];
}

}  // namespace smalltalk
