// Autoregressive inference with a key-value cache: what a row has been fed is not computed again.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

// By what a model that merges experts (ModelConfig::merged_experts) chooses their weights, for each
// row and layer.
enum class MergeBy {
  // Once, by the mean over all tokens that the row is begun with, which are read with these weights
  // themselves, as in Lory. Steps merge nothing.
  prompt,
  // For each segment of the row by the mean of the one before, as where texts are scored: logits
  // are those of Transformer::logits().
  segments,
};

// A row is one document: it is not looked for end-of-text tokens. Where experts are merged, each
// row keeps merged matrices of its own, which take as much memory as a plain model's feed-forwards,
// and which a step must read for every row, begun or not.
class Decoder {
 public:
  // Room for `rows` sequences of up to `max_tokens` tokens, on the model's device and in its
  // precision. The model must outlive it and keep its weights. `merging` has no effect on a model
  // that merges nothing.
  Decoder(const Transformer& model, int64_t rows, int64_t max_tokens,
          MergeBy merging = MergeBy::prompt);
  ~Decoder();

  // Begins row `row` anew with these tokens, of which there is at least one. Returns the logits
  // after the last of them [V].
  std::vector<float> begin(int64_t row, std::span<const int64_t> tokens);
  // Feeds one more token to every row that was begun, tokens [rows]; -> logits [rows, V]. Those of
  // other rows mean nothing.
  std::vector<float> step(std::span<const int64_t> tokens);
  // The row is done: step() passes over it.
  void end(int64_t row);
  // Tokens that the row was fed; 0: it is not begun.
  int64_t size(int64_t row) const;
  // The weights of the experts in each layer that merges them, as the row's last token was read.
  std::vector<std::vector<float>> expert_weights(int64_t row) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
