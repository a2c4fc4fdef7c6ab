// What a block does between its matrix products and what follows the last product, as kernels
// behind plain pointers, so that nvcc compiles no LibTorch header. N tokens, H hidden, F
// intermediate, V vocabulary. R models of N / R tokens each lie one after another; their weights
// are `stride` floats apart. Numbers of products ("values") are float32 or bfloat16, all else is
// float32. Rows are contiguous. No kernel uses atomics: the same input gives the same bits on every
// device.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace smalltalk {

inline constexpr int kBlockThreads = 256;
struct LaunchGrid {
  int64_t x = 1, y = 1;  // blocks
};

enum class NumberType { float32, bfloat16 };

struct NormShape {
  NumberType type = NumberType::float32;  // of values
  int64_t models = 1, tokens = 0;         // N, of all models
  int64_t hidden = 0;                     // kMaxNormWidth at most
  int64_t stride = 0;                     // between the weights of two models, floats
};
inline constexpr int64_t kMaxNormWidth = 8192;
inline constexpr int64_t kNormParts = 128;  // sums over tokens of a model that are added up last

// Where the heads of tokens lie: element i of head h of token t of sequence s at
// data + s * sequence + h * head + t * token + i.
struct HeadsView {
  const void* data = nullptr;
  int64_t sequence = 0, head = 0, token = 0;
};

struct RotaryShape {
  NumberType type = NumberType::float32;
  int64_t tokens = 0, length = 0;  // token t is at position t % length of sequence t / length
  int64_t heads = 0, kv_heads = 0, dim = 0;
};

struct ActivationShape {
  NumberType type = NumberType::float32;
  int64_t tokens = 0, width = 0;  // F
  bool gated = false;  // silu(gate) * up of [N, 2 F], gate first; or relu(up)^2 of [N, F]
};

struct SoftmaxShape {
  NumberType type = NumberType::float32;  // of gradients
  int64_t tokens = 0, vocab = 0;
};

struct BlockKernels {
  // sum = x + delta, out = sum * rstd * weight, rstd = 1 / sqrt(mean(sum^2) + eps). Without `delta`
  // (null) `sum` is not written and x takes its place; `rstd` may be null.
  void (*add_norm)(const NormShape& shape, const float* x, const void* delta, const float* weight,
                   float eps, float* sum, void* out, float* rstd, CUstream_st* stream);
  // d_x += the gradient of x, given that of `out`; d_rounded, unless it is null, = d_x as values;
  // d_weight += its gradient. `parts` is scratch of models * kNormParts * H floats. x: what was
  // normalised.
  void (*norm_backward)(const NormShape& shape, const void* d_out, const float* x,
                        const float* weight, const float* rstd, float* d_x, void* d_rounded,
                        float* parts, float* d_weight, CUstream_st* stream);
  // Turns the query and key heads of qkv [N, heads + 2 kv_heads, dim] in place. cosine and sine
  // [length, dim], of which the first half counts.
  void (*rotate)(const RotaryShape& shape, void* qkv, const float* cosine, const float* sine,
                 CUstream_st* stream);
  // d_qkv, as qkv, from the gradients of turned queries, turned keys, and values.
  void (*rotate_backward)(const RotaryShape& shape, const HeadsView& d_query,
                          const HeadsView& d_key, const HeadsView& d_value, const float* cosine,
                          const float* sine, void* d_qkv, CUstream_st* stream);
  void (*activate)(const ActivationShape& shape, const void* up, void* out, CUstream_st* stream);
  void (*activate_backward)(const ActivationShape& shape, const void* up, const void* d_out,
                            void* d_up, CUstream_st* stream);
  // Of logits [N, V] float32: log_probs = log p(target), greedy = 1 where no word is likelier, else
  // 0; d_logits = scale * (softmax - onehot), unless null. Targets for which `counted` is 0 have
  // log p and gradient 0; null: all count.
  void (*softmax)(const SoftmaxShape& shape, const float* logits, const int64_t* targets,
                  const uint8_t* counted, float scale, float* log_probs, uint8_t* greedy,
                  void* d_logits, CUstream_st* stream);
};

const BlockKernels& cuda_block_kernels();  // of kernels.cu

}  // namespace smalltalk
