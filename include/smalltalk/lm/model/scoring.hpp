// Log-probabilities by token: what scores of prefixes, perplexities, tasks and comparisons are sums
// of. Nats.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

// The models that read the same rows: one transformer, or all of a stack in one pass. A view.
class ModelsView {
 public:
  ModelsView(const Transformer& model) : ModelsView(model.impl()) {}
  explicit ModelsView(const Transformer::Impl& models) : models_(&models) {}

  int64_t size() const;  // R
  const Transformer::Impl& impl() const { return *models_; }

 private:
  const Transformer::Impl* models_;
};

// Of rows `first` .. first + count - 1 of a source. log p of every token but a row's first, which
// is given, and whether greedy decoding would take it: 1 if no token is likelier, of equals any.
struct LogProbs {
  int64_t first = 0;
  int64_t count = 0;
  int64_t length = 0;                      // of a row's log-probabilities, one less than its tokens
  std::span<const float> values;           // [R, count, length]
  std::span<const uint8_t> greedy_values;  // [R, count, length]

  // Those of row first + i.
  std::span<const float> row(int64_t model, int64_t i) const { return part(values, model, i); }
  std::span<const uint8_t> greedy(int64_t model, int64_t i) const {
    return part(greedy_values, model, i);
  }

 private:
  template <typename T>
  std::span<T> part(std::span<T> all, int64_t model, int64_t i) const {
    return all.subspan(static_cast<size_t>((model * count + i) * length),
                       static_cast<size_t>(length));
  }
};

// How the experts of a model that merges them are weighed (others take no notice). By default as
// far as is known before a token: a first segment weighs all of them alike.
struct Merging {
  // A first segment by its own mean, as in training: its tokens then know of later ones.
  bool leaky = false;
  // The first so many tokens of each row, as a prompt, by their own mean, and by the same all that
  // follow; 0: segment by segment.
  int64_t prompt_tokens = 0;
  bool operator==(const Merging&) const = default;
};

// Hands out the log-probabilities of rows first .. last - 1, in order, as many rows at a time as
// the device works on at once; what is handed out lies in memory until `visit` returns. A row's
// bits follow from its tokens, its length and the weights: not from its place, nor from how many
// rows are asked for. Errors: rows of less than 2 tokens; ids outside [0, V), naming the row; what
// `visit` throws.
void visit_log_probs(const ModelsView& models, const RowSource& rows, int64_t first, int64_t last,
                     const std::function<void(const LogProbs& piece)>& visit,
                     const Merging& merging = {});

// sums[j] <- the log-likelihood of a row's first prefixes[j] tokens. REQUIRES prefixes to ascend
// within 1 .. length + 1.
void sum_prefixes(std::span<const float> log_probs, std::span<const int64_t> prefixes,
                  std::span<double> sums);

// The log-likelihood of a text's tokens behind the first, under one model.
double log_likelihood(const Transformer& model, std::span<const int64_t> tokens);

}  // namespace smalltalk
