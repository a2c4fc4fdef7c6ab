#include "lm/torch/torch_loss.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "lm/torch/device.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

// ---- LibTorch operations, float32 ---------------------------------------------------------------

// Vocabularies up to a tile's words need no second product for the gradients.
constexpr int64_t kTileTokens = 512, kTileWords = 32768;

// The logits of a tile of tokens, a tile of words at a time in one buffer.
class LogitTiles {
 public:
  LogitTiles(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
             const at::Tensor& counted)
      : hidden_(hidden),
        head_(head),
        targets_(targets),
        counted_(counted),
        vocab_(head.size(0)),
        buffer_(at::empty({std::min(kTileTokens, hidden.size(0)) * std::min(kTileWords, vocab_)},
                          hidden.options())) {}

  // Computes log_sums, maxima and target_logits of the tile that begins at token `first`; the
  // buffer is left with exp(logit - log_sum) of the last tile of words.
  void begin(int64_t first) {
    const int64_t count = std::min(kTileTokens, hidden_.size(0) - first);
    input_ = hidden_.narrow(0, first, count);
    target_ = targets_.narrow(0, first, count).unsqueeze(1);
    if (counted_.defined()) counts_ = counted_.narrow(0, first, count).unsqueeze(1);
    target_logits_ = at::zeros({count, 1}, input_.options());
    log_sums_ = at::full({count, 1}, -INFINITY, input_.options());
    maxima_ = log_sums_;
    for (int64_t word = 0; word < vocab_; word += kTileWords) {
      const at::Tensor logits = project(word);
      at::Tensor index, inside;
      find_targets(word, logits.size(1), index, inside);
      target_logits_ += at::where(inside, logits.gather(1, index), 0.0);
      const at::Tensor maximum = logits.amax(1, true);
      maxima_ = at::maximum(maxima_, maximum);
      logits.sub_(maximum).exp_();
      log_sums_ = at::logaddexp(log_sums_, logits.sum(1, true).log_() + maximum);
      if (vocab_ <= kTileWords) logits.mul_((maximum - log_sums_).exp_());
    }
  }
  at::Tensor log_probs() const {  // [count, 1]
    const at::Tensor all = target_logits_ - log_sums_;
    return counts_.defined() ? at::where(counts_, all, 0.0) : all;
  }
  at::Tensor greedy() const { return target_logits_ >= maxima_; }  // [count, 1]

  // Adds to d_head and overwrites d_hidden [count, H], after begin().
  void add_gradients(float scale, at::Tensor d_hidden, at::Tensor& d_head) {
    for (int64_t word = 0; word < vocab_; word += kTileWords) {
      at::Tensor gradient;
      if (vocab_ <= kTileWords) {
        gradient = tile(vocab_);
      } else {
        gradient = project(word).sub_(log_sums_).exp_();
      }
      const int64_t width = gradient.size(1);
      at::Tensor index, inside;
      find_targets(word, width, index, inside);
      gradient.scatter_add_(1, index, inside.to(gradient.scalar_type()).neg_());
      if (counts_.defined()) gradient.mul_(counts_);
      d_hidden.addmm_(gradient, head_.narrow(0, word, width), word == 0 ? 0 : 1, scale);
      d_head.narrow(0, word, width).addmm_(gradient.t(), input_, 1, scale);
    }
  }

 private:
  at::Tensor tile(int64_t width) const {
    return buffer_.narrow(0, 0, input_.size(0) * width).view({input_.size(0), width});
  }
  at::Tensor project(int64_t word) const {
    const int64_t width = std::min(kTileWords, vocab_ - word);
    at::Tensor logits = tile(width);
    at::mm_out(logits, input_, head_.narrow(0, word, width).t());
    return logits;
  }
  // The targets' places among the words [word, word + width), and whether they are there.
  void find_targets(int64_t word, int64_t width, at::Tensor& index, at::Tensor& inside) const {
    const at::Tensor place = target_ - word;
    index = place.clamp(0, width - 1);
    inside = index == place;
  }

  at::Tensor hidden_, head_, targets_, counted_;
  int64_t vocab_;
  at::Tensor buffer_;
  at::Tensor input_, target_, counts_, target_logits_, log_sums_, maxima_;
};

// ---- Kernels, bfloat16 on a GPU -----------------------------------------------------------------

constexpr int64_t kChunkValues = int64_t{1} << 26;  // of gradients of logits at a time: 128 MiB

int64_t chunk_words(int64_t tokens, int64_t vocab) {
  return std::min(vocab, std::max<int64_t>(1024, kChunkValues / tokens / 128 * 128));
}

bool has_kernels(const at::Tensor& hidden) {
  return hidden.is_cuda() && hidden.scalar_type() == at::kBFloat16;
}

const uint16_t* bits(const at::Tensor& tensor) {
  ST_CHECK(tensor.is_contiguous());
  return static_cast<const uint16_t*>(tensor.const_data_ptr());
}

LossSizes loss_sizes(const at::Tensor& hidden, const at::Tensor& head) {
  return {hidden.size(0), hidden.size(1), head.size(0)};
}

// Also writes log_sums [T].
TargetScores kernel_target_scores(const at::Tensor& hidden, const at::Tensor& head,
                                  const at::Tensor& targets, const at::Tensor& counted,
                                  at::Tensor& log_sums) {
  const LossSizes sizes = loss_sizes(hidden, head);
  const auto options = hidden.options().dtype(at::kFloat);
  at::Tensor scratch = at::empty({cuda_device().log_probs_scratch(sizes)}, options);
  log_sums = at::empty({sizes.tokens}, options);
  TargetScores scores{at::empty_like(log_sums), at::empty_like(log_sums, at::kByte)};
  cuda_device().log_probs(sizes, bits(hidden), bits(head), targets.const_data_ptr<int64_t>(),
                          scratch.data_ptr<float>(), log_sums.data_ptr<float>(),
                          scores.log_probs.data_ptr<float>(), scores.greedy.data_ptr<uint8_t>());
  if (counted.defined()) scores.log_probs = at::where(counted, scores.log_probs, 0.0);
  return scores;
}

at::Tensor kernel_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                                const at::Tensor& targets, float scale, at::Tensor& d_hidden,
                                at::Tensor& d_head, const at::Tensor& counted) {
  const LossSizes sizes = loss_sizes(hidden, head);
  at::Tensor log_sums;
  const at::Tensor log_probs =
      kernel_target_scores(hidden, head, targets, counted, log_sums).log_probs;
  const int64_t chunk = chunk_words(sizes.tokens, sizes.vocab);
  const at::Tensor buffer = at::empty({sizes.tokens * chunk}, hidden.options());
  at::Tensor product = at::empty_like(hidden),
             head_product = at::empty({chunk * sizes.hidden}, hidden.options());
  // Sums over chunks are float32, each chunk's product is rounded once.
  at::Tensor sum = at::zeros(hidden.sizes(), hidden.options().dtype(at::kFloat));
  for (int64_t begin = 0; begin < sizes.vocab; begin += chunk) {
    const int64_t width = std::min(chunk, sizes.vocab - begin);
    const at::Tensor d_logits =
        buffer.narrow(0, 0, sizes.tokens * width).view({sizes.tokens, width});
    cuda_device().d_logits(sizes, bits(hidden), bits(head), targets.const_data_ptr<int64_t>(),
                           log_sums.const_data_ptr<float>(), scale, begin, width,
                           static_cast<uint16_t*>(d_logits.data_ptr()));
    if (counted.defined()) at::Tensor(d_logits).mul_(counted.unsqueeze(1));
    at::mm_out(product, d_logits, head.narrow(0, begin, width));
    sum.add_(product);
    at::Tensor d_words =
        head_product.narrow(0, 0, width * sizes.hidden).view({width, sizes.hidden});
    at::mm_out(d_words, d_logits.t(), hidden);
    d_head.narrow(0, begin, width).add_(d_words);
  }
  d_hidden.copy_(sum);
  return log_probs.sum(at::kDouble).neg_();
}

}  // namespace

at::Tensor fused_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                               const at::Tensor& targets, float scale, at::Tensor& d_hidden,
                               at::Tensor& d_head, const at::Tensor& counted) {
  if (has_kernels(hidden)) {
    return kernel_cross_entropy(hidden, head, targets, scale, d_hidden, d_head, counted);
  }
  LogitTiles tiles(hidden.to(at::kFloat), head.to(at::kFloat), targets, counted);
  at::Tensor d_input = hidden.scalar_type() == at::kFloat
                           ? d_hidden
                           : at::empty_like(hidden, hidden.options().dtype(at::kFloat));
  at::Tensor loss = at::zeros({}, hidden.options().dtype(at::kDouble));
  for (int64_t first = 0; first < hidden.size(0); first += kTileTokens) {
    const int64_t count = std::min(kTileTokens, hidden.size(0) - first);
    tiles.begin(first);
    loss -= tiles.log_probs().sum(at::kDouble);
    tiles.add_gradients(scale, d_input.narrow(0, first, count), d_head);
  }
  if (!d_input.is_same(d_hidden)) d_hidden.copy_(d_input);
  return loss;
}

TargetScores fused_target_scores(const at::Tensor& hidden, const at::Tensor& head,
                                 const at::Tensor& targets, const at::Tensor& counted) {
  at::Tensor log_sums;
  if (has_kernels(hidden)) return kernel_target_scores(hidden, head, targets, counted, log_sums);
  LogitTiles tiles(hidden.to(at::kFloat), head.to(at::kFloat), targets, counted);
  TargetScores scores{at::empty({hidden.size(0)}, hidden.options().dtype(at::kFloat)),
                      at::empty({hidden.size(0)}, hidden.options().dtype(at::kByte))};
  for (int64_t first = 0; first < hidden.size(0); first += kTileTokens) {
    tiles.begin(first);
    const at::Tensor log_probs = tiles.log_probs().squeeze(1);
    scores.log_probs.narrow(0, first, log_probs.size(0)).copy_(log_probs);
    scores.greedy.narrow(0, first, log_probs.size(0)).copy_(tiles.greedy().squeeze(1));
  }
  return scores;
}

int64_t fused_cross_entropy_bytes(int64_t tokens, int64_t hidden, int64_t vocab, bool kernels) {
  if (kernels) {
    const int64_t chunk = chunk_words(tokens, vocab);
    return 2 * (tokens * chunk + chunk * hidden) + (2 + 2 + 4) * tokens * hidden;
  }
  return 4 * (std::min(kTileTokens, tokens) * std::min(kTileWords, vocab) + tokens * hidden);
}

}  // namespace smalltalk
