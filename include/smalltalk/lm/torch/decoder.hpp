// Autoregressive inference with a key-value cache: what a row has been fed is not computed again.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

class Decoder {
 public:
  // Room for `rows` sequences of up to `max_tokens` tokens, on the model's device and in its
  // precision. The model must outlive it and keep its weights.
  Decoder(const Transformer& model, int64_t rows, int64_t max_tokens);
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

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
