// Output projection and cross-entropy as one step of autograd, in tiles of tokens: the logits of
// all tokens never exist at once. T tokens, H hidden, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

namespace smalltalk {

// -> the sum of -log p(target), float32 scalar. hidden [T, H] and head [V, H] of one type;
// targets [T].
at::Tensor tiled_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                               const at::Tensor& targets);
// -> log p(target) [T], float32. No autograd.
at::Tensor tiled_target_log_probs(const at::Tensor& hidden, const at::Tensor& head,
                                  const at::Tensor& targets);

}  // namespace smalltalk
