// Output projection and softmax cross-entropy in one, in tiles: logits of tokens x vocabulary never
// exist. T tokens, H hidden, V vocabulary.
#pragma once

#include <cstdint>

namespace smalltalk {

struct LossShape {
  int64_t tokens;  // T
  int64_t hidden;  // H
  int64_t vocab;   // V
};

// Tokens whose logits exist at a time when training.
int64_t loss_tile_tokens(int64_t vocab);
int64_t loss_scratch_size(int64_t hidden, int64_t vocab);
int64_t log_probs_scratch_size();

// The sum of -log p(target) over the tokens, in nats. Writes d_hidden [T, H] and adds to d_head
// [V, H] the gradients of `scale` times that sum.
double loss_and_gradients(const LossShape& shape, const float* hidden, const float* head,
                          const int64_t* targets, float scale, float* d_hidden, float* d_head,
                          float* scratch);

// log_probs [T] <- log p(target), tiled over the vocabulary too.
void target_log_probs(const LossShape& shape, const float* hidden, const float* head,
                      const int64_t* targets, float* log_probs, float* scratch);

}  // namespace smalltalk
