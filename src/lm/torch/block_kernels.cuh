// The kernels of block_launch.hpp, and how they are launched. Whoever includes this says before
// what differs between a GPU (kernels.cu) and its emulation by a test on the CPU:
// round_to_bf16(value) and launch(grid, stream, kernel, arguments...), which starts blocks of
// kBlockThreads threads. bfloat16 values travel as their bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "lm/torch/block_launch.hpp"

namespace smalltalk {
namespace block {

constexpr int kWarp = 32;
constexpr int kPack = 4;  // neighbours that move at once
constexpr float kLog2E = 1.44269504F;

// ---- Values -------------------------------------------------------------------------------------

struct alignas(16) FloatPack {
  float values[kPack];
};
struct alignas(8) Bf16Pack {
  uint16_t values[kPack];
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ inline void set(float& to, float value) { to = value; }
__device__ inline void set(uint16_t& to, float value) { to = round_to_bf16(value); }

// Values [at, at + 4) of an array of `size`, of which a pack may be loaded as one if `aligned`;
// zeros behind its end.
template <class Value>
__device__ inline void load_pack(const Value* from, int64_t at, int64_t size, bool aligned,
                                 float (&to)[kPack]) {
  if (aligned && at + kPack <= size) {
    if constexpr (sizeof(Value) == sizeof(float)) {
      const FloatPack pack = *reinterpret_cast<const FloatPack*>(from + at);
      for (int i = 0; i < kPack; ++i) to[i] = pack.values[i];
    } else {
      const Bf16Pack pack = *reinterpret_cast<const Bf16Pack*>(from + at);
      for (int i = 0; i < kPack; ++i) to[i] = to_float(pack.values[i]);
    }
    return;
  }
  for (int i = 0; i < kPack; ++i) to[i] = at + i < size ? to_float(from[at + i]) : 0.0F;
}

template <class Value>
__device__ inline void store_pack(Value* to, int64_t at, int64_t size, bool aligned,
                                  const float (&values)[kPack]) {
  if (aligned && at + kPack <= size) {
    if constexpr (sizeof(Value) == sizeof(float)) {
      FloatPack pack;
      for (int i = 0; i < kPack; ++i) pack.values[i] = values[i];
      *reinterpret_cast<FloatPack*>(to + at) = pack;
    } else {
      Bf16Pack pack;
      for (int i = 0; i < kPack; ++i) set(pack.values[i], values[i]);
      *reinterpret_cast<Bf16Pack*>(to + at) = pack;
    }
    return;
  }
  for (int i = 0; i < kPack; ++i) {
    if (at + i < size) set(to[at + i], values[i]);
  }
}

// ---- Norm ---------------------------------------------------------------------------------------

// Of kTeam threads, a warp or the block: each gets the sum. All threads of the block must call.
template <int kTeam>
__device__ inline float team_sum(float value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, static_cast<unsigned>(lanes));
  }
  if constexpr (kTeam == kWarp) return value;
  __shared__ float of_warps[kBlockThreads / kWarp];
  __syncthreads();  // of the sum before, all have read
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < kBlockThreads / kWarp; ++i) sum += of_warps[i];
  return sum;
}

// A row is kTeam threads' work, each of which has kSteps packs of it.
template <class Value, int kTeam, int kSteps>
__global__ void __launch_bounds__(kBlockThreads, 2)
    add_norm_kernel(NormShape shape, const float* x, const Value* delta, const float* weight,
                    float eps, float* sum, Value* out, float* rstd) {
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlockThreads / kTeam) +
                      static_cast<int>(threadIdx.x) / kTeam;
  const bool inside = row < shape.tokens, aligned = shape.hidden % kPack == 0;
  const int64_t width = inside ? shape.hidden : 0, begin = inside ? row * shape.hidden : 0;
  const int64_t model = inside ? row / (shape.tokens / shape.models) : 0;
  float values[kSteps][kPack];
  float square = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t column = static_cast<int64_t>(step * kTeam + lane) * kPack;
    load_pack(x + begin, column, width, aligned, values[step]);
    if (delta != nullptr) {
      float added[kPack];
      load_pack(delta + begin, column, width, aligned, added);
      for (int i = 0; i < kPack; ++i) values[step][i] += added[i];
      if (column < width) store_pack(sum + begin, column, width, aligned, values[step]);
    }
    for (int i = 0; i < kPack; ++i) square += values[step][i] * values[step][i];
  }
  square = team_sum<kTeam>(square);
  const float scale = rsqrtf(square / static_cast<float>(shape.hidden) + eps);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t column = static_cast<int64_t>(step * kTeam + lane) * kPack;
    if (column >= width) continue;
    float weights[kPack];
    load_pack(weight + model * shape.stride, column, width, aligned, weights);
    for (int i = 0; i < kPack; ++i) values[step][i] *= scale * weights[i];
    store_pack(out + begin, column, width, aligned, values[step]);
  }
  if (inside && lane == 0 && rstd != nullptr) rstd[row] = scale;
}

// Block (x, y): every gridDim.x-th row of model y; parts[y, x] is its share of d_weight.
template <class Value, int kTeam, int kSteps>
__global__ void __launch_bounds__(kBlockThreads, kSteps < 8 ? 2 : 1)
    norm_backward_kernel(NormShape shape, int64_t blocks, const Value* d_out, const float* x,
                         const float* weight, const float* rstd, float* d_x, Value* d_rounded,
                         float* parts) {
  constexpr int kTeams = kBlockThreads / kTeam;
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const int team = static_cast<int>(threadIdx.x) / kTeam;
  const int64_t rows = shape.tokens / shape.models, model = blockIdx.y;
  const bool aligned = shape.hidden % kPack == 0;
  float d_weight[kSteps][kPack] = {};
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kTeams; first < rows;
       first += blocks * kTeams) {
    const bool inside = first + team < rows;
    const int64_t row = inside ? model * rows + first + team : 0;
    const int64_t width = inside ? shape.hidden : 0, begin = row * shape.hidden;
    const float scale = inside ? rstd[row] : 0.0F;
    float gradient[kSteps][kPack], input[kSteps][kPack];
    float dot = 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t column = static_cast<int64_t>(step * kTeam + lane) * kPack;
      float weights[kPack];
      load_pack(d_out + begin, column, width, aligned, gradient[step]);
      load_pack(x + begin, column, width, aligned, input[step]);
      load_pack(weight + model * shape.stride, column, width, aligned, weights);
      for (int i = 0; i < kPack; ++i) {
        d_weight[step][i] += gradient[step][i] * input[step][i] * scale;
        gradient[step][i] *= weights[i];
        dot += gradient[step][i] * input[step][i];
      }
    }
    const float share = team_sum<kTeam>(dot) * scale * scale / static_cast<float>(shape.hidden);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t column = static_cast<int64_t>(step * kTeam + lane) * kPack;
      if (column >= width) continue;
      float sum[kPack];
      load_pack(d_x + begin, column, width, aligned, sum);
      for (int i = 0; i < kPack; ++i) {
        sum[i] += scale * (gradient[step][i] - share * input[step][i]);
      }
      store_pack(d_x + begin, column, width, aligned, sum);
      if (d_rounded != nullptr) store_pack(d_rounded + begin, column, width, aligned, sum);
    }
  }
  // One team after another, so that the order of the sum is always the same.
  __shared__ float sums[kTeams == 1 ? 1 : kSteps * kWarp * kPack];
  float* part = parts + (model * blocks + blockIdx.x) * shape.hidden;
  for (int turn = 0; turn < kTeams; ++turn) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t column = static_cast<int64_t>(step * kTeam + lane) * kPack;
      for (int i = 0; i < kPack && column + i < shape.hidden; ++i) {
        if (team != turn) continue;
        const float before = turn == 0 ? 0.0F : sums[column + i];
        const float sum = before + d_weight[step][i];
        if (turn + 1 == kTeams) {
          part[column + i] = sum;
        } else {
          sums[column + i] = sum;
        }
      }
    }
    if (kTeams > 1) __syncthreads();
  }
}

// Block (x, y): columns x * 32 .. of model y; d_weight += the sum of its parts.
__global__ static void __launch_bounds__(kBlockThreads, 2)
    sum_parts_kernel(NormShape shape, int64_t blocks, const float* parts, float* d_weight) {
  constexpr int kRows = kBlockThreads / kWarp;
  __shared__ float sums[kRows][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0;
  for (int64_t part = first; part < blocks && column < shape.hidden; part += kRows) {
    sum += parts[(blockIdx.y * blocks + part) * shape.hidden + column];
  }
  sums[first][lane] = sum;
  __syncthreads();
  if (first != 0 || column >= shape.hidden) return;
  for (int row = 1; row < kRows; ++row) sum += sums[row][lane];
  d_weight[blockIdx.y * shape.stride + column] += sum;
}

// ---- Rotary -------------------------------------------------------------------------------------

__device__ inline int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * kBlockThreads + static_cast<int64_t>(threadIdx.x);
}

// A thread has four pairs (i, i + dim / 2) of one head.
template <class Value>
__global__ void __launch_bounds__(kBlockThreads, 2)
    rotate_kernel(RotaryShape shape, Value* qkv, const float* cosine, const float* sine) {
  const int64_t half = shape.dim / 2, packs = (half + kPack - 1) / kPack;
  const int64_t turned = shape.heads + shape.kv_heads;
  const int64_t at = global_thread();
  if (at >= shape.tokens * turned * packs) return;
  const int64_t column = at % packs * kPack, head = at / packs % turned;
  const int64_t token = at / packs / turned;
  const bool aligned = half % kPack == 0;
  Value* from = qkv + (token * (turned + shape.kv_heads) + head) * shape.dim;
  const int64_t angle = token % shape.length * shape.dim;
  float low[kPack], high[kPack], c[kPack], s[kPack];
  load_pack(from, column, half, aligned, low);
  load_pack(from + half, column, half, aligned, high);
  load_pack(cosine + angle, column, half, aligned, c);
  load_pack(sine + angle, column, half, aligned, s);
  for (int i = 0; i < kPack; ++i) {
    const float before = low[i];
    low[i] = before * c[i] - high[i] * s[i];
    high[i] = high[i] * c[i] + before * s[i];
  }
  store_pack(from, column, half, aligned, low);
  store_pack(from + half, column, half, aligned, high);
}

template <class Value>
__global__ void __launch_bounds__(kBlockThreads, 2)
    rotate_backward_kernel(RotaryShape shape, HeadsView d_query, HeadsView d_key, HeadsView d_value,
                           const float* cosine, const float* sine, Value* d_qkv) {
  const int64_t half = shape.dim / 2, packs = (half + kPack - 1) / kPack;
  const int64_t turned = shape.heads + shape.kv_heads, all = turned + shape.kv_heads;
  const int64_t at = global_thread();
  if (at >= shape.tokens * all * packs) return;
  const int64_t column = at % packs * kPack, head = at / packs % all;
  const int64_t token = at / packs / all, position = token % shape.length;
  const bool is_query = head < shape.heads, is_value = head >= turned;
  const auto pick = [&](auto of_query, auto of_key, auto of_value) {
    return is_query ? of_query : is_value ? of_value : of_key;
  };
  const void* data = pick(d_query.data, d_key.data, d_value.data);
  const int64_t of_sequence = pick(d_query.sequence, d_key.sequence, d_value.sequence);
  const int64_t of_head = pick(d_query.head, d_key.head, d_value.head);
  const int64_t of_token = pick(d_query.token, d_key.token, d_value.token);
  const Value* from = static_cast<const Value*>(data) + token / shape.length * of_sequence +
                      (head - pick(int64_t{0}, shape.heads, turned)) * of_head +
                      position * of_token;
  const bool aligned = half % kPack == 0 && (of_sequence | of_head | of_token) % kPack == 0;
  float low[kPack], high[kPack];
  load_pack(from, column, half, aligned, low);
  load_pack(from + half, column, half, aligned, high);
  if (!is_value) {
    float c[kPack], s[kPack];
    load_pack(cosine + position * shape.dim, column, half, half % kPack == 0, c);
    load_pack(sine + position * shape.dim, column, half, half % kPack == 0, s);
    for (int i = 0; i < kPack; ++i) {
      const float before = low[i];
      low[i] = before * c[i] + high[i] * s[i];
      high[i] = high[i] * c[i] - before * s[i];
    }
  }
  Value* to = d_qkv + (token * all + head) * shape.dim;
  store_pack(to, column, half, half % kPack == 0, low);
  store_pack(to + half, column, half, half % kPack == 0, high);
}

// ---- Activation ---------------------------------------------------------------------------------

__device__ inline float sigmoid(float x) { return 1.0F / (1.0F + exp2f(-x * kLog2E)); }

template <class Value>
__global__ void __launch_bounds__(kBlockThreads, 2)
    activate_kernel(ActivationShape shape, const Value* up, Value* out) {
  const int64_t packs = (shape.width + kPack - 1) / kPack, at = global_thread();
  if (at >= shape.tokens * packs) return;
  const int64_t row = at / packs, column = at % packs * kPack;
  const bool aligned = shape.width % kPack == 0;
  float values[kPack];
  if (shape.gated) {
    float gate[kPack];
    load_pack(up + row * 2 * shape.width, column, shape.width, aligned, gate);
    load_pack(up + (row * 2 + 1) * shape.width, column, shape.width, aligned, values);
    for (int i = 0; i < kPack; ++i) values[i] *= gate[i] * sigmoid(gate[i]);
  } else {
    load_pack(up + row * shape.width, column, shape.width, aligned, values);
    for (int i = 0; i < kPack; ++i) values[i] = values[i] > 0 ? values[i] * values[i] : 0.0F;
  }
  store_pack(out + row * shape.width, column, shape.width, aligned, values);
}

template <class Value>
__global__ void __launch_bounds__(kBlockThreads, 2)
    activate_backward_kernel(ActivationShape shape, const Value* up, const Value* d_out,
                             Value* d_up) {
  const int64_t packs = (shape.width + kPack - 1) / kPack, at = global_thread();
  if (at >= shape.tokens * packs) return;
  const int64_t row = at / packs, column = at % packs * kPack;
  const bool aligned = shape.width % kPack == 0;
  float d[kPack], values[kPack];
  load_pack(d_out + row * shape.width, column, shape.width, aligned, d);
  if (shape.gated) {
    const int64_t gate_row = row * 2 * shape.width, up_row = gate_row + shape.width;
    float gate[kPack], d_gate[kPack];
    load_pack(up + gate_row, column, shape.width, aligned, gate);
    load_pack(up + up_row, column, shape.width, aligned, values);
    for (int i = 0; i < kPack; ++i) {
      const float s = sigmoid(gate[i]);
      d_gate[i] = d[i] * values[i] * s * (1.0F + gate[i] * (1.0F - s));
      values[i] = d[i] * gate[i] * s;
    }
    store_pack(d_up + gate_row, column, shape.width, aligned, d_gate);
    store_pack(d_up + up_row, column, shape.width, aligned, values);
  } else {
    load_pack(up + row * shape.width, column, shape.width, aligned, values);
    for (int i = 0; i < kPack; ++i) values[i] = values[i] > 0 ? 2.0F * values[i] * d[i] : 0.0F;
    store_pack(d_up + row * shape.width, column, shape.width, aligned, values);
  }
}

// ---- Softmax ------------------------------------------------------------------------------------

// The sum of exp(x - maximum). Empty: {kLowest, 0}, finite so that differences stay numbers.
struct SoftmaxSum {
  float maximum, sum;
};
constexpr float kLowest = -1e30F;

__device__ inline SoftmaxSum merge(SoftmaxSum a, SoftmaxSum b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  return {maximum, a.sum * exp2f((a.maximum - maximum) * kLog2E) +
                       b.sum * exp2f((b.maximum - maximum) * kLog2E)};
}

// A block has one row.
template <class Value>
__global__ void __launch_bounds__(kBlockThreads, 2)
    softmax_kernel(SoftmaxShape shape, const float* logits, const int64_t* targets,
                   const uint8_t* counted, float scale, float* log_probs, uint8_t* greedy,
                   Value* d_logits) {
  const int64_t row = blockIdx.x, begin = row * shape.vocab;
  const bool aligned = shape.vocab % kPack == 0;
  SoftmaxSum sum = {kLowest, 0};
  for (int64_t word = static_cast<int64_t>(threadIdx.x) * kPack; word < shape.vocab;
       word += kBlockThreads * kPack) {
    float values[kPack];
    load_pack(logits + begin, word, shape.vocab, aligned, values);
    float maximum = sum.maximum;
    for (int i = 0; i < kPack; ++i) {
      if (word + i < shape.vocab) maximum = fmaxf(maximum, values[i]);
    }
    sum.sum *= exp2f((sum.maximum - maximum) * kLog2E);
    sum.maximum = maximum;
    for (int i = 0; i < kPack; ++i) {
      if (word + i < shape.vocab) sum.sum += exp2f((values[i] - maximum) * kLog2E);
    }
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const auto other = static_cast<unsigned>(lanes);
    sum = merge(sum, {__shfl_xor_sync(0xffffffffU, sum.maximum, other),
                      __shfl_xor_sync(0xffffffffU, sum.sum, other)});
  }
  __shared__ SoftmaxSum of_warps[kBlockThreads / kWarp];
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = of_warps[0];
  for (int i = 1; i < kBlockThreads / kWarp; ++i) sum = merge(sum, of_warps[i]);

  const int64_t target = targets[row];
  const float log_sum = sum.maximum + logf(sum.sum), logit = logits[begin + target];
  const bool counts = counted == nullptr || counted[row] != 0;
  if (threadIdx.x == 0) {
    log_probs[row] = counts ? logit - log_sum : 0.0F;
    greedy[row] = logit >= sum.maximum ? 1 : 0;
  }
  if (d_logits == nullptr) return;
  const float factor = counts ? scale : 0.0F;
  for (int64_t word = static_cast<int64_t>(threadIdx.x) * kPack; word < shape.vocab;
       word += kBlockThreads * kPack) {
    float values[kPack];
    load_pack(logits + begin, word, shape.vocab, aligned, values);
    for (int i = 0; i < kPack; ++i) {
      const float probability = exp2f((values[i] - log_sum) * kLog2E);
      values[i] = factor * (probability - (word + i == target ? 1.0F : 0.0F));
    }
    store_pack(d_logits + begin, word, shape.vocab, aligned, values);
  }
}

// ---- Launching ----------------------------------------------------------------------------------

inline int64_t blocks_for(int64_t threads) { return (threads + kBlockThreads - 1) / kBlockThreads; }

// Calls f with a null pointer of the type.
template <class F>
void with_type(NumberType type, F f) {
  if (type == NumberType::float32) {
    f(static_cast<float*>(nullptr));
  } else {
    f(static_cast<uint16_t*>(nullptr));
  }
}

// f.template operator()<Value, kTeam, kSteps>(): rows up to 1,024 wide are a warp's, wider ones a
// block's.
template <class F>
void with_norm(const NormShape& shape, F f) {
  with_type(shape.type, [&](auto* type) {
    using Value = std::remove_pointer_t<decltype(type)>;
    const int64_t h = shape.hidden;
    if (h <= 128) return f.template operator()<Value, kWarp, 1>();
    if (h <= 256) return f.template operator()<Value, kWarp, 2>();
    if (h <= 512) return f.template operator()<Value, kWarp, 4>();
    if (h <= 1024) return f.template operator()<Value, kWarp, 8>();
    if (h <= 2048) return f.template operator()<Value, kBlockThreads, 2>();
    if (h <= 4096) return f.template operator()<Value, kBlockThreads, 4>();
    f.template operator()<Value, kBlockThreads, 8>();
  });
}

inline void launch_add_norm(const NormShape& shape, const float* x, const void* delta,
                            const float* weight, float eps, float* sum, void* out, float* rstd,
                            CUstream_st* stream) {
  with_norm(shape, [&]<class Value, int kTeam, int kSteps>() {
    const int64_t rows = kBlockThreads / kTeam;
    launch(LaunchGrid{(shape.tokens + rows - 1) / rows}, stream,
           add_norm_kernel<Value, kTeam, kSteps>, shape, x, static_cast<const Value*>(delta),
           weight, eps, sum, static_cast<Value*>(out), rstd);
  });
}

inline void launch_norm_backward(const NormShape& shape, const void* d_out, const float* x,
                                 const float* weight, const float* rstd, float* d_x,
                                 void* d_rounded, float* parts, float* d_weight,
                                 CUstream_st* stream) {
  const int64_t rows = shape.tokens / shape.models;
  const int64_t blocks = rows < kNormParts ? rows : kNormParts;
  with_norm(shape, [&]<class Value, int kTeam, int kSteps>() {
    launch(LaunchGrid{blocks, shape.models}, stream, norm_backward_kernel<Value, kTeam, kSteps>,
           shape, blocks, static_cast<const Value*>(d_out), x, weight, rstd, d_x,
           static_cast<Value*>(d_rounded), parts);
  });
  launch(LaunchGrid{(shape.hidden + kWarp - 1) / kWarp, shape.models}, stream, sum_parts_kernel,
         shape, blocks, parts, d_weight);
}

inline void launch_rotate(const RotaryShape& shape, void* qkv, const float* cosine,
                          const float* sine, CUstream_st* stream) {
  const int64_t packs = (shape.dim / 2 + kPack - 1) / kPack;
  with_type(shape.type, [&](auto* type) {
    using Value = std::remove_pointer_t<decltype(type)>;
    launch(LaunchGrid{blocks_for(shape.tokens * (shape.heads + shape.kv_heads) * packs)}, stream,
           rotate_kernel<Value>, shape, static_cast<Value*>(qkv), cosine, sine);
  });
}

inline void launch_rotate_backward(const RotaryShape& shape, const HeadsView& d_query,
                                   const HeadsView& d_key, const HeadsView& d_value,
                                   const float* cosine, const float* sine, void* d_qkv,
                                   CUstream_st* stream) {
  const int64_t packs = (shape.dim / 2 + kPack - 1) / kPack;
  with_type(shape.type, [&](auto* type) {
    using Value = std::remove_pointer_t<decltype(type)>;
    launch(LaunchGrid{blocks_for(shape.tokens * (shape.heads + 2 * shape.kv_heads) * packs)},
           stream, rotate_backward_kernel<Value>, shape, d_query, d_key, d_value, cosine, sine,
           static_cast<Value*>(d_qkv));
  });
}

inline void launch_activate(const ActivationShape& shape, const void* up, void* out,
                            CUstream_st* stream) {
  const int64_t packs = (shape.width + kPack - 1) / kPack;
  with_type(shape.type, [&](auto* type) {
    using Value = std::remove_pointer_t<decltype(type)>;
    launch(LaunchGrid{blocks_for(shape.tokens * packs)}, stream, activate_kernel<Value>, shape,
           static_cast<const Value*>(up), static_cast<Value*>(out));
  });
}

inline void launch_activate_backward(const ActivationShape& shape, const void* up,
                                     const void* d_out, void* d_up, CUstream_st* stream) {
  const int64_t packs = (shape.width + kPack - 1) / kPack;
  with_type(shape.type, [&](auto* type) {
    using Value = std::remove_pointer_t<decltype(type)>;
    launch(LaunchGrid{blocks_for(shape.tokens * packs)}, stream, activate_backward_kernel<Value>,
           shape, static_cast<const Value*>(up), static_cast<const Value*>(d_out),
           static_cast<Value*>(d_up));
  });
}

inline void launch_softmax(const SoftmaxShape& shape, const float* logits, const int64_t* targets,
                           const uint8_t* counted, float scale, float* log_probs, uint8_t* greedy,
                           void* d_logits, CUstream_st* stream) {
  with_type(shape.type, [&](auto* type) {
    using Value = std::remove_pointer_t<decltype(type)>;
    launch(LaunchGrid{shape.tokens}, stream, softmax_kernel<Value>, shape, logits, targets, counted,
           scale, log_probs, greedy, static_cast<Value*>(d_logits));
  });
}

}  // namespace block

inline const BlockKernels kBlockKernels = {block::launch_add_norm, block::launch_norm_backward,
                                           block::launch_rotate,   block::launch_rotate_backward,
                                           block::launch_activate, block::launch_activate_backward,
                                           block::launch_softmax};

}  // namespace smalltalk
