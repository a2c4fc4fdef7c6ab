#include "cpu_loss.hpp"

#include <algorithm>
#include <cmath>

#include "gemm.hpp"
#include "kernels.hpp"

namespace smalltalk {
namespace {

// Scoring: a tile of logits of this size stays in a core's second-level cache.
constexpr int64_t kScoreTileTokens = 128;
constexpr int64_t kScoreTileVocab = 1024;
// Training: all V logits of a token are needed at once; a tile of this many bytes stays in cache
// for small vocabularies, and for large ones has tokens enough to keep the products efficient.
constexpr int64_t kLossTileFloats = 128 * 1024;
constexpr int64_t kMinLossTileTokens = 128;

// Rows a power of two apart would share a few sets of the cache and push each other out.
int64_t logits_stride(int64_t vocab) { return (vocab + 15) / 16 * 16 + 16; }

}  // namespace

int64_t loss_tile_tokens(int64_t vocab) {
  return std::max(kMinLossTileTokens, kLossTileFloats / vocab / 16 * 16);
}

int64_t loss_scratch_size(int64_t hidden, int64_t vocab) {
  return loss_tile_tokens(vocab) * (logits_stride(vocab) + hidden);
}

int64_t log_probs_scratch_size() { return kScoreTileTokens * kScoreTileVocab; }

double loss_and_gradients(const LossShape& shape, const float* hidden, const float* head,
                          const int64_t* targets, float scale, float* d_hidden, float* d_head,
                          float* scratch) {
  const int64_t width = shape.hidden, vocab = shape.vocab;
  const int64_t tile = loss_tile_tokens(vocab);
  const int64_t stride = logits_stride(vocab);
  float* logits = scratch;                  // [tile, V]
  float* scaled = scratch + tile * stride;  // [tile, H]
  double loss = 0;
  for (int64_t first = 0; first < shape.tokens; first += tile) {
    const int64_t count = std::min(tile, shape.tokens - first);
    const float* input = hidden + first * width;
    float* d_input = d_hidden + first * width;
    gemm_nt(count, vocab, width, 1, {input, width}, {head, width}, 0, {logits, stride});
    for (int64_t t = 0; t < count; ++t) {
      float* row = logits + t * stride;
      const int64_t target = targets[first + t];
      const float logit = row[target];
      float maximum = 0;
      const float sum = exp_row(row, vocab, &maximum);
      loss += std::log(static_cast<double>(sum)) + maximum - logit;
      // The gradient of the logits is (row / sum - one_hot(target)) * scale. The factor scale / sum
      // is moved to the [tile, H] side of both products, which saves a pass over the logits.
      row[target] -= sum;
      scale_row_into(input + t * width, width, scale / sum, scaled + t * width);
      d_input[t * width] = scale / sum;  // kept here until the product below
    }
    gemm_tn(vocab, width, count, 1, {logits, stride}, {scaled, width}, 1, {d_head, width});
    for (int64_t t = 0; t < count; ++t) scaled[t] = d_input[t * width];
    gemm_nn(count, width, vocab, 1, {logits, stride}, {head, width}, 0, {d_input, width});
    for (int64_t t = 0; t < count; ++t) scale_row(d_input + t * width, width, scaled[t]);
  }
  return loss;
}

void target_log_probs(const LossShape& shape, const float* hidden, const float* head,
                      const int64_t* targets, float* log_probs, float* scratch) {
  const int64_t width = shape.hidden, vocab = shape.vocab;
  float* logits = scratch;  // [kScoreTileTokens, kScoreTileVocab]
  for (int64_t first = 0; first < shape.tokens; first += kScoreTileTokens) {
    const int64_t count = std::min(kScoreTileTokens, shape.tokens - first);
    float maximum[kScoreTileTokens], logit[kScoreTileTokens];
    double sum[kScoreTileTokens];  // of exp(logit - maximum), over the tiles so far
    for (int64_t begin = 0; begin < vocab; begin += kScoreTileVocab) {
      const int64_t columns = std::min(kScoreTileVocab, vocab - begin);
      gemm_nt(count, columns, width, 1, {hidden + first * width, width},
              {head + begin * width, width}, 0, {logits, columns});
      for (int64_t t = 0; t < count; ++t) {
        float* row = logits + t * columns;
        const int64_t column = targets[first + t] - begin;
        if (column >= 0 && column < columns) logit[t] = row[column];
        float tile_maximum = 0;
        const double tile_sum = exp_row(row, columns, &tile_maximum);
        if (begin == 0) {
          maximum[t] = tile_maximum;
          sum[t] = tile_sum;
        } else {
          const float top = std::max(maximum[t], tile_maximum);
          sum[t] = sum[t] * std::exp(static_cast<double>(maximum[t] - top)) +
                   tile_sum * std::exp(static_cast<double>(tile_maximum - top));
          maximum[t] = top;
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      log_probs[first + t] =
          static_cast<float>(static_cast<double>(logit[t]) - maximum[t] - std::log(sum[t]));
    }
  }
}

}  // namespace smalltalk
