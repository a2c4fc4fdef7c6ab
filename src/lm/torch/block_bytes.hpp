// Bytes that the kernels of block_launch.hpp move: what they read and write, each once. Weights and
// angles, which stay in the cache, and sums over tokens are left out.
#pragma once

#include "lm/torch/block_launch.hpp"

namespace smalltalk {

inline int64_t value_bytes(NumberType type) { return type == NumberType::bfloat16 ? 2 : 4; }

inline int64_t add_norm_bytes(const NormShape& shape, bool with_delta) {
  const int64_t value = value_bytes(shape.type), read = 4 + (with_delta ? value : 0);
  return shape.tokens * shape.hidden * (read + (with_delta ? 4 : 0) + value);
}
inline int64_t norm_backward_bytes(const NormShape& shape) {
  const int64_t value = value_bytes(shape.type), rounded = value == 4 ? 0 : value;
  return shape.tokens * shape.hidden * (value + 4 + 2 * 4 + rounded);
}
inline int64_t rotate_bytes(const RotaryShape& shape) {
  return shape.tokens * (shape.heads + shape.kv_heads) * shape.dim * 2 * value_bytes(shape.type);
}
inline int64_t rotate_backward_bytes(const RotaryShape& shape) {
  return shape.tokens * (shape.heads + 2 * shape.kv_heads) * shape.dim * 2 *
         value_bytes(shape.type);
}
inline int64_t activate_bytes(const ActivationShape& shape) {
  return shape.tokens * shape.width * (shape.gated ? 3 : 2) * value_bytes(shape.type);
}
inline int64_t activate_backward_bytes(const ActivationShape& shape) {
  return shape.tokens * shape.width * (shape.gated ? 5 : 3) * value_bytes(shape.type);
}
// With gradients: the logits are read twice.
inline int64_t softmax_bytes(const SoftmaxShape& shape, bool with_gradients) {
  return shape.tokens * shape.vocab * (with_gradients ? 2 * 4 + value_bytes(shape.type) : 4);
}

}  // namespace smalltalk
