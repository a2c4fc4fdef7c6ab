// Output projection and cross-entropy in one, a chunk of tokens at a time: the logits of all of
// them never exist at once. Products are the library's, with float32 logits; one kernel makes
// scores and gradients of them. T tokens, H hidden, V vocabulary. hidden [T, H] and head [V, H] are
// contiguous and of one type, targets [T] int64. No autograd. Where `counted` [T] bool is defined,
// targets that do not count cost nothing, and their log p is 0.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace smalltalk {

// -> the sum of -log p(target), a float64 scalar on the device. Writes the gradients of `scale`
// times that sum: d_hidden [T, H], of the type of hidden, is overwritten; they are added to d_head
// [V, H], float32.
at::Tensor fused_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                               const at::Tensor& targets, float scale, at::Tensor& d_hidden,
                               at::Tensor& d_head, const at::Tensor& counted = {});
struct TargetScores {
  at::Tensor log_probs;  // log p(target) [T], float32
  at::Tensor greedy;     // [T], uint8: 1 where no word is likelier
};
TargetScores fused_target_scores(const at::Tensor& hidden, const at::Tensor& head,
                                 const at::Tensor& targets, const at::Tensor& counted = {});

// Bytes that fused_cross_entropy takes at most, d_hidden among them; in bfloat16 or float32.
int64_t fused_cross_entropy_bytes(int64_t tokens, int64_t hidden, int64_t vocab, bool bf16);

}  // namespace smalltalk
