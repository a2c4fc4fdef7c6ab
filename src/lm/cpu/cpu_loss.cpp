#include "lm/cpu/cpu_loss.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "lm/cpu/cpu_kernels.hpp"
#include "lm/cpu/elementwise.hpp"
#include "lm/cpu/gemm.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {
namespace {

// Rows of the vocabulary whose logits are in cache together.
constexpr int64_t kChunk = 256;
// Tokens of a tile: many, so that the projection is read seldom; few, so that their exponentials
// stay near. Below 64 the products get slow.
constexpr int64_t kTileFloats = 4 << 20, kMinTile = 64, kMaxTile = 256;
constexpr int64_t kScoreTile = 256;

constexpr float kLog2e = 1.44269504F;
constexpr double kLn2 = 0.693147180559945309;
constexpr float kLowest = -1e30F;

int64_t tile_tokens(int64_t vocab) {
  return std::clamp(kTileFloats / vocab / kSoftmaxLanes * kSoftmaxLanes, kMinTile, kMaxTile);
}

int64_t whole_lanes(int64_t tokens) {
  return (tokens + kSoftmaxLanes - 1) / kSoftmaxLanes * kSoftmaxLanes;
}

// out [H, whole_lanes(count)] <- x [count, H]^T, zero where there is no token.
void transpose(const float* x, int64_t count, int64_t hidden, float* out) {
  const int64_t stride = whole_lanes(count);
  for (int64_t h = 0; h < hidden; ++h) {
    float* row = out + h * stride;
    for (int64_t t = 0; t < count; ++t) row[t] = x[t * hidden + h];
    std::fill(row + count, row + stride, 0.0F);
  }
}

// logits [rows, whole_lanes(count)] of rows [first, first + rows) of the head, in base 2.
void project_chunk(const float* head, int64_t first, int64_t rows, const float* input,
                   int64_t count, int64_t hidden, float* logits) {
  const int64_t stride = whole_lanes(count);
  gemm_nn(rows, stride, hidden, kLog2e, {head + first * hidden, hidden}, {input, stride}, false,
          {logits, stride});
}

void keep_target_logits(const int64_t* targets, int64_t count, int64_t first, int64_t rows,
                        const float* logits, float* kept) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t row = targets[t] - first;
    if (row >= 0 && row < rows) kept[t] = logits[row * whole_lanes(count) + t];
  }
}

}  // namespace

FusedLoss::FusedLoss(int64_t hidden, int64_t vocab, ThreadTeam& team)
    : hidden_(hidden), vocab_(vocab), tile_(tile_tokens(vocab)), team_(team) {
  workers_.resize(static_cast<size_t>(team.size()));
  for (int i = 0; i < team.size(); ++i) {
    Worker& w = workers_[i];
    std::tie(w.begin, w.end) = part_of_range(vocab, i, team.size(), kSoftmaxLanes);
    for (Published& published : w.published) {
      for (auto* values : {&published.maximum, &published.sum, &published.logit}) {
        values->resize(tile_);
      }
      published.d_hidden.resize(hidden * tile_);
    }
    w.input.resize(hidden * tile_);
    w.exponentials.resize((w.end - w.begin) * tile_);
    w.shifts.resize((w.end - w.begin + kChunk - 1) / kChunk * tile_);
    w.factor.resize(tile_);
    w.scaled.resize(tile_ * hidden);
    w.maximum.resize(tile_);
    w.gain.resize(tile_);
  }
}

int64_t FusedLoss::memory_floats(int64_t hidden, int64_t vocab, int threads) {
  const int64_t tile = tile_tokens(vocab);
  return tile * (vocab + vocab / kChunk + threads * (4 * hidden + 9));
}

double FusedLoss::run(int thread, std::span<const LossTokens> tokens, const float* head,
                      float scale, float* d_head) {
  Worker& worker = workers_[thread];
  double loss = 0;
  for (const LossTokens& of_thread : tokens) {
    for (int64_t first = 0; first < of_thread.count; first += tile_) {
      const LossTokens tile{std::min(tile_, of_thread.count - first),
                            of_thread.hidden + first * hidden_, of_thread.targets + first,
                            of_thread.d_hidden + first * hidden_};
      project(worker, tile, head);
      team_.wait();
      loss += join(thread, tile, head, scale);
      head_gradients(worker, tile, scale, d_head);
      worker.turn ^= 1;
    }
  }
  team_.wait();
  return loss;
}

void FusedLoss::project(Worker& w, const LossTokens& tile, const float* head) {
  const int64_t stride = whole_lanes(tile.count);
  Published& mine = w.published[w.turn];
  transpose(tile.hidden, tile.count, hidden_, w.input.data());
  std::fill(mine.maximum.begin(), mine.maximum.end(), kLowest);
  std::fill(mine.sum.begin(), mine.sum.end(), 0.0F);
  for (int64_t first = w.begin; first < w.end; first += kChunk) {
    const int64_t rows = std::min(kChunk, w.end - first);
    float* logits = w.exponentials.data() + (first - w.begin) * stride;
    project_chunk(head, first, rows, w.input.data(), tile.count, hidden_, logits);
    keep_target_logits(tile.targets, tile.count, first, rows, logits, mine.logit.data());
    const bool moved = cpu_kernels().softmax_chunk(
        logits, rows, stride, {mine.maximum.data(), mine.sum.data(), w.factor.data()});
    std::copy_n(mine.maximum.data(), stride, w.shifts.data() + (first - w.begin) / kChunk * stride);
    if (moved && first > w.begin) {
      for (int64_t h = 0; h < hidden_; ++h) {
        elementwise().multiply_into(w.factor.data(), stride, mine.d_hidden.data() + h * stride);
      }
    }
    gemm_tn(hidden_, stride, rows, 1, {head + first * hidden_, hidden_}, {logits, stride},
            first > w.begin, {mine.d_hidden.data(), stride});
  }
}

// Sums of all threads; then the hidden states' gradients of this thread's share of the tokens.
double FusedLoss::join(int thread, const LossTokens& tile, const float* head, float scale) {
  Worker& w = workers_[thread];
  const int64_t stride = whole_lanes(tile.count);
  const auto [share_begin, share_end] = part_of_range(tile.count, thread, team_.size());
  double loss = 0;
  for (int64_t t = 0; t < tile.count; ++t) {
    float maximum = kLowest, sum = 0, logit = 0;
    for (const Worker& other : workers_) {
      maximum = std::max(maximum, other.published[w.turn].maximum[t]);
    }
    for (const Worker& other : workers_) {
      const Published& theirs = other.published[w.turn];
      sum += theirs.sum[t] * std::exp2(theirs.maximum[t] - maximum);
      if (tile.targets[t] >= other.begin && tile.targets[t] < other.end) logit = theirs.logit[t];
    }
    const bool counts = tile.targets[t] >= 0;
    w.maximum[t] = maximum;
    w.gain[t] = counts ? scale / sum : 0;
    if (thread == 0 && counts)
      loss += kLn2 * (static_cast<double>(maximum - logit) + std::log2(static_cast<double>(sum)));
    if (t < share_begin || t >= share_end) continue;
    float* d_hidden = tile.d_hidden + t * hidden_;
    if (!counts) {
      std::fill_n(d_hidden, hidden_, 0.0F);
      continue;
    }
    const float* target = head + tile.targets[t] * hidden_;
    for (int64_t h = 0; h < hidden_; ++h) d_hidden[h] = -scale * target[h];
    for (const Worker& other : workers_) {
      const Published& theirs = other.published[w.turn];
      const float gain = w.gain[t] * std::exp2(theirs.maximum[t] - maximum);
      for (int64_t h = 0; h < hidden_; ++h) {
        d_hidden[h] += gain * theirs.d_hidden[h * stride + t];
      }
    }
  }
  return loss;
}

void FusedLoss::head_gradients(Worker& w, const LossTokens& tile, float scale, float* d_head) {
  const int64_t stride = whole_lanes(tile.count);
  const float* last_shifts = nullptr;
  for (int64_t first = w.begin; first < w.end; first += kChunk) {
    const int64_t rows = std::min(kChunk, w.end - first);
    const float* shifts = w.shifts.data() + (first - w.begin) / kChunk * stride;
    // The division by the sum is done on the [tokens, H] side; after the first few chunks the
    // maxima, and with them the factors, stay what they are.
    if (last_shifts == nullptr ||
        std::memcmp(shifts, last_shifts, tile.count * sizeof(float)) != 0) {
      for (int64_t t = 0; t < tile.count; ++t) {
        elementwise().scale_row_into(tile.hidden + t * hidden_, hidden_,
                                     w.gain[t] * std::exp2(shifts[t] - w.maximum[t]),
                                     w.scaled.data() + t * hidden_);
      }
    }
    last_shifts = shifts;
    gemm_nn(rows, hidden_, tile.count, 1,
            {w.exponentials.data() + (first - w.begin) * stride, stride},
            {w.scaled.data(), hidden_}, true, {d_head + first * hidden_, hidden_});
  }
  for (int64_t t = 0; t < tile.count; ++t) {
    const int64_t target = tile.targets[t];
    if (target < w.begin || target >= w.end) continue;
    elementwise().add_scaled(tile.hidden + t * hidden_, hidden_, -scale, d_head + target * hidden_);
  }
}

int64_t log_probs_scratch_size(int64_t hidden) { return kScoreTile * (hidden + kChunk + 4); }

void target_log_probs(int64_t count, int64_t hidden_size, int64_t vocab, const float* hidden,
                      const float* head, const int64_t* targets, float* log_probs, uint8_t* greedy,
                      float* scratch) {
  float* input = scratch;                            // [H, tile]
  float* logits = input + kScoreTile * hidden_size;  // [kChunk, tile]
  float* maximum = logits + kScoreTile * kChunk;     // [tile], as the following
  float* sum = maximum + kScoreTile;
  float* factor = sum + kScoreTile;
  float* logit = factor + kScoreTile;
  for (int64_t begin = 0; begin < count; begin += kScoreTile) {
    const int64_t tile = std::min(kScoreTile, count - begin);
    transpose(hidden + begin * hidden_size, tile, hidden_size, input);
    std::fill_n(maximum, kScoreTile, kLowest);
    std::fill_n(sum, kScoreTile, 0.0F);
    for (int64_t first = 0; first < vocab; first += kChunk) {
      const int64_t rows = std::min(kChunk, vocab - first);
      project_chunk(head, first, rows, input, tile, hidden_size, logits);
      keep_target_logits(targets + begin, tile, first, rows, logits, logit);
      cpu_kernels().softmax_chunk_sums(logits, rows, whole_lanes(tile), {maximum, sum, factor});
    }
    for (int64_t t = 0; t < tile; ++t) {
      const double log_prob = kLn2 * (static_cast<double>(logit[t] - maximum[t]) -
                                      std::log2(static_cast<double>(sum[t])));
      const bool counts = targets[begin + t] >= 0;
      log_probs[begin + t] = counts ? static_cast<float>(log_prob) : 0.0F;
      greedy[begin + t] = !counts || logit[t] >= maximum[t] ? 1 : 0;
    }
  }
}

}  // namespace smalltalk
