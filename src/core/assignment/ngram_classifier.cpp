#include "smalltalk/core/assignment/ngram_classifier.hpp"

#include <algorithm>
#include <cmath>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

// Calls take(token before, token) for each n-gram of a text; -1 stands for none.
template <typename Take>
void for_ngrams(std::span<const int64_t> tokens, Take&& take) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    take(-1, tokens[i]);
    if (i > 0) take(tokens[i - 1], tokens[i]);
  }
}

void softmax(std::span<float> scores) {
  const float maximum = *std::ranges::max_element(scores);
  float sum = 0;
  for (float& score : scores) sum += score = std::exp(score - maximum);
  for (float& score : scores) score /= sum;
}

}  // namespace

// By the high bits of a product (Knuth's multiplicative hashing).
size_t NgramClassifier::row_of(int64_t before, int64_t token) const {
  uint64_t hash = static_cast<uint64_t>(before + 1) * 0xD1B54A32D192ED03U;
  hash = (hash ^ (hash >> 32) ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15U;
  return hash >> (64 - hash_bits_);
}

std::span<const float> NgramClassifier::weights_of(size_t row) const {
  const auto classes = static_cast<size_t>(num_classes_);
  return std::span(weights_).subspan(row * classes, classes);
}

NgramClassifier::NgramClassifier(const Read& read, std::span<const uint16_t> classes,
                                 int64_t num_tokens, const NgramClassifierOptions& options)
    : num_classes_(options.num_classes), hash_bits_(options.hash_bits) {
  ST_CHECK(!classes.empty() && num_classes_ >= 1 && num_tokens >= 1 && hash_bits_ >= 1);
  const auto width = static_cast<size_t>(num_classes_);
  weights_.assign((size_t{1} << hash_bits_) * width, 0);
  std::vector<float> squares(weights_.size());  // of each weight's gradients
  const auto rate_of_learning = static_cast<float>(options.rate);
  std::vector<int64_t> tokens(static_cast<size_t>(num_tokens));
  std::vector<float> gradient(width);
  const Permutation sample(classes.size(), derive_seed(options.seed, "texts with classes"));
  const auto size = std::min(options.max_sample, std::ssize(classes));
  for (int64_t epoch = 0; epoch < options.epochs; ++epoch) {
    const Permutation order(static_cast<uint64_t>(size),
                            derive_seed(options.seed, "epoch", static_cast<uint64_t>(epoch)));
    for (int64_t i = 0; i < size; ++i) {
      if (i % 4096 == 0) stop_if_asked();
      const uint64_t text = sample(order(static_cast<uint64_t>(i)));
      read(text, tokens);
      rate(tokens, gradient);
      softmax(gradient);
      gradient[classes[text]] -= 1;
      for_ngrams(tokens, [&](int64_t before, int64_t token) {
        const size_t first = row_of(before, token) * width;
        for (size_t c = 0; c < width; ++c) {
          squares[first + c] += gradient[c] * gradient[c];
          if (gradient[c] == 0) continue;
          weights_[first + c] -= rate_of_learning * gradient[c] / std::sqrt(squares[first + c]);
        }
      });
    }
  }
}

void NgramClassifier::rate(std::span<const int64_t> tokens, std::span<float> scores) const {
  ST_CHECK(std::ssize(scores) == num_classes_);
  std::ranges::fill(scores, 0.0F);
  for_ngrams(tokens, [&](int64_t before, int64_t token) {
    const std::span<const float> weights = weights_of(row_of(before, token));
    for (size_t c = 0; c < scores.size(); ++c) scores[c] += weights[c];
  });
}

}  // namespace smalltalk
