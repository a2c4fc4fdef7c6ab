// The kernels of the fused output projection and cross-entropy: bfloat16 in, products on tensor
// cores with float32 sums, logits only ever in shared memory and registers. T tokens, H hidden,
// V vocabulary.
//
// `Matrix` gives what a warp does with 16 x 16 matrices (see WmmaMatrix in loss.cu), so that a test
// can run these kernels without a GPU. bfloat16 values travel as their bits.
#pragma once

#include <cmath>
#include <cstdint>

namespace smalltalk {

using Bf16 = uint16_t;

// A block computes the logits of 128 tokens and 128 words with 2 x 4 warps; each of them has 64
// tokens and 32 words: 4 x 2 matrices of 16 x 16.
constexpr int kLossTile = 128;
constexpr int kLossThreads = 256;
constexpr int kLossBlocks = 2;  // on a multiprocessor at a time
constexpr int kLossSide = 16;   // of a matrix
constexpr int kLossDepth = 32;  // of H at a time
// Padding moves the rows to other banks, and keeps every matrix aligned to 32 bytes.
constexpr int kLossTilePitch = kLossDepth + 8;
constexpr int kLossPatchPitch = kLossSide + 4;
constexpr int kLossPack = 8;  // values that move at once

struct alignas(16) LossPack {
  Bf16 values[kLossPack];
};

// The sum of exp(x - maximum). Empty: {kLossLowest, 0}, finite so that differences stay numbers.
struct SoftmaxSum {
  float maximum, sum;
};
constexpr float kLossLowest = -1e30F;
constexpr float kLossLog2E = 1.44269504F;

struct LossTile {
  union {
    Bf16 inputs[2][2][kLossTile * kLossTilePitch];  // [turn][hidden, head]
    float patches[kLossThreads / 32][kLossSide * kLossPatchPitch];
  };
};

__device__ inline SoftmaxSum merge(SoftmaxSum a, SoftmaxSum b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  return {maximum, a.sum * exp2f((a.maximum - maximum) * kLossLog2E) +
                       b.sum * exp2f((b.maximum - maximum) * kLossLog2E)};
}

// Values [column, column + 8) of a row; zeros outside of [rows, width].
__device__ inline LossPack load_pack(const Bf16* matrix, int64_t row, int64_t rows, int64_t column,
                                     int64_t width, bool aligned) {
  LossPack pack = {};
  if (row >= rows) return pack;
  const Bf16* from = matrix + row * width + column;
  if (aligned && column + kLossPack <= width) {
    pack = *reinterpret_cast<const LossPack*>(from);
  } else {
    for (int i = 0; i < kLossPack; ++i) {
      if (column + i < width) pack.values[i] = from[i];
    }
  }
  return pack;
}

// logits[i][j]: this warp's 4 x 2 matrices of hidden [T, H] x head [V, H]^T at (token, word). The
// next step's values are fetched while this one's are multiplied.
template <class Matrix>
__device__ void compute_logits(LossTile& tile, const Bf16* hidden, const Bf16* head, int64_t T,
                               int64_t H, int64_t V, int64_t token, int64_t word,
                               typename Matrix::Sum (&logits)[4][2]) {
  constexpr int kRowPacks = kLossDepth / kLossPack;
  constexpr int kPacks = kLossTile * kRowPacks / kLossThreads;  // of a thread, for each input
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const bool aligned = H % kLossPack == 0;
  LossPack packs[2][kPacks];
  const auto fetch = [&](int64_t depth) {
    for (int i = 0; i < kPacks; ++i) {
      const int row = (thread + i * kLossThreads) / kRowPacks;
      const int64_t column = depth + (thread + i * kLossThreads) % kRowPacks * kLossPack;
      packs[0][i] = load_pack(hidden, token + row, T, column, H, aligned);
      packs[1][i] = load_pack(head, word + row, V, column, H, aligned);
    }
  };
  const auto put = [&](int turn) {
    for (int i = 0; i < kPacks; ++i) {
      const int row = (thread + i * kLossThreads) / kRowPacks;
      const int column = (thread + i * kLossThreads) % kRowPacks * kLossPack;
      for (int input = 0; input < 2; ++input) {
        Bf16* to = tile.inputs[turn][input] + row * kLossTilePitch + column;
        *reinterpret_cast<LossPack*>(to) = packs[input][i];
      }
    }
  };
  for (auto& row : logits) {
    for (auto& sum : row) Matrix::clear(sum);
  }
  fetch(0);
  __syncthreads();  // the tile may still be read as patches
  put(0);
  __syncthreads();
  int turn = 0;
  for (int64_t depth = 0; depth < H; depth += kLossDepth, turn = 1 - turn) {
    const bool more = depth + kLossDepth < H;
    if (more) fetch(depth + kLossDepth);
    const Bf16* rows = tile.inputs[turn][0] + warp / 4 * 64 * kLossTilePitch;
    const Bf16* columns = tile.inputs[turn][1] + warp % 4 * 32 * kLossTilePitch;
    for (int k = 0; k < kLossDepth; k += kLossSide) {
      typename Matrix::Right right[2];
      for (int j = 0; j < 2; ++j) {
        Matrix::load(right[j], columns + j * kLossSide * kLossTilePitch + k, kLossTilePitch);
      }
      for (int i = 0; i < 4; ++i) {
        typename Matrix::Left left;
        Matrix::load(left, rows + i * kLossSide * kLossTilePitch + k, kLossTilePitch);
        for (int j = 0; j < 2; ++j) Matrix::multiply(left, right[j], logits[i][j]);
      }
    }
    if (more) put(1 - turn);
    __syncthreads();
  }
}

// f(i, row, column, values): every lane gets 8 neighbours of each of its warp's matrices, row and
// column counted within the block's tile, i the matrix's place among the rows.
template <class Matrix, class F>
__device__ void visit_logits(LossTile& tile, typename Matrix::Sum (&logits)[4][2], F f) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float* patch = tile.patches[warp];
  // Matrices and sums stay in registers only if their indices are constants.
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      __syncwarp();
      Matrix::store(patch, logits[i][j], kLossPatchPitch);
      __syncwarp();
      const int row = lane / 2, column = lane % 2 * kLossPack;
      f(i, warp / 4 * 64 + i * kLossSide + row, warp % 4 * 32 + j * kLossSide + column,
        patch + row * kLossPatchPitch + column);
    }
  }
}

// Forward. Blocks (x, y): tokens x * 128 .., and the y-th part of the vocabulary, `part_tiles`
// tiles of 128 words. Writes sums[y, token] over the part, and the target's logit where it is in.
template <class Matrix>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks)
    softmax_sums_kernel(const Bf16* hidden, const Bf16* head, const int64_t* targets, int64_t T,
                        int64_t H, int64_t V, int part_tiles, SoftmaxSum* sums,
                        float* target_logits) {
  __shared__ LossTile tile;
  __shared__ SoftmaxSum shared_sums[4][kLossTile];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kLossTile;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * part_tiles * kLossTile;
  const int words = static_cast<int>(V - begin);
  typename Matrix::Sum logits[4][2];
  // A lane always has the same four rows.
  SoftmaxSum sum[4];
  int target[4];  // the word's place behind `begin`
  for (int i = 0; i < 4; ++i) {
    const int64_t t = token + warp / 4 * 64 + i * kLossSide + lane / 2;
    sum[i] = {kLossLowest, 0};
    target[i] = t < T ? static_cast<int>(targets[t] - begin) : -1;
  }
  for (int part = 0; part < part_tiles; ++part) {
    const int64_t word = begin + static_cast<int64_t>(part) * kLossTile;
    if (word >= V) break;
    compute_logits<Matrix>(tile, hidden, head, T, H, V, token, word, logits);
    visit_logits<Matrix>(tile, logits, [&](int i, int row, int column, const float* values) {
      const int first = part * kLossTile + column;
      float maximum = sum[i].maximum;
      for (int k = 0; k < kLossPack; ++k) {
        if (first + k < words) maximum = fmaxf(maximum, values[k]);
      }
      float total = sum[i].sum * exp2f((sum[i].maximum - maximum) * kLossLog2E);
      for (int k = 0; k < kLossPack; ++k) {
        if (first + k >= words) continue;
        total += exp2f((values[k] - maximum) * kLossLog2E);
        if (first + k == target[i]) target_logits[token + row] = values[k];
      }
      sum[i] = {maximum, total};
    });
  }
  // Two lanes and four warps have parts of each row.
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const SoftmaxSum other = {__shfl_xor_sync(0xffffffffU, sum[i].maximum, 1),
                              __shfl_xor_sync(0xffffffffU, sum[i].sum, 1)};
    if (lane % 2 == 0) {
      shared_sums[warp % 4][warp / 4 * 64 + i * kLossSide + lane / 2] = merge(sum[i], other);
    }
  }
  __syncthreads();
  const int64_t row = threadIdx.x;
  if (row < kLossTile && token + row < T) {
    SoftmaxSum all = shared_sums[0][row];
    for (int i = 1; i < 4; ++i) all = merge(all, shared_sums[i][row]);
    sums[static_cast<int64_t>(blockIdx.y) * T + token + row] = all;
  }
}

// One thread a token: log_sums = log of the sum of exp over the vocabulary, log_probs = that of the
// target, greedy = whether no word is likelier. `log_probs` holds the targets' logits before.
__global__ static void combine_sums_kernel(const SoftmaxSum* sums, int64_t T, int parts,
                                           float* log_sums, float* log_probs, uint8_t* greedy) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t >= T) return;
  SoftmaxSum all = sums[t];
  for (int part = 1; part < parts; ++part) all = merge(all, sums[part * T + t]);
  log_sums[t] = all.maximum + logf(all.sum);
  greedy[t] = log_probs[t] >= all.maximum ? 1 : 0;
  log_probs[t] -= log_sums[t];
}

// Backward. Blocks (x, y): tokens x * 128 .., words begin + y * 128 .. Writes d_logits [T, width],
// scale * (softmax - onehot) of the words [begin, begin + width).
template <class Matrix>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks)
    d_logits_kernel(const Bf16* hidden, const Bf16* head, const int64_t* targets,
                    const float* log_sums, int64_t T, int64_t H, int64_t V, float scale,
                    int64_t begin, int64_t width, Bf16* d_logits) {
  __shared__ LossTile tile;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kLossTile;
  const int64_t word = begin + static_cast<int64_t>(blockIdx.y) * kLossTile;
  typename Matrix::Sum logits[4][2];
  compute_logits<Matrix>(tile, hidden, head, T, H, V, token, word, logits);
  visit_logits<Matrix>(tile, logits, [&](int, int row, int column, const float* values) {
    const int64_t t = token + row, first = word + column;
    if (t >= T) return;
    const float log_sum = log_sums[t];
    const int64_t target = targets[t];
    LossPack pack;
    for (int k = 0; k < kLossPack; ++k) {
      const float probability = exp2f((values[k] - log_sum) * kLossLog2E);
      pack.values[k] = Matrix::round(scale * (probability - (first + k == target ? 1.0F : 0.0F)));
    }
    Bf16* to = d_logits + t * width + (first - begin);
    if (width % kLossPack == 0 && first + kLossPack <= begin + width) {
      *reinterpret_cast<LossPack*>(to) = pack;
    } else {
      for (int k = 0; k < kLossPack; ++k) {
        if (first + k < begin + width) to[k] = pack.values[k];
      }
    }
  });
}

}  // namespace smalltalk
