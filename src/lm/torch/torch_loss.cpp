#include "lm/torch/torch_loss.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "lm/torch/block_ops.hpp"
#include "lm/torch/torch_weights.hpp"

namespace smalltalk {
namespace {

// 256 MiB of logits at a time. Few tokens would read and write the head's gradient too often.
constexpr int64_t kChunkLogits = int64_t{1} << 26;
constexpr int64_t kTokenUnit = 128;

int64_t chunk_tokens(int64_t tokens, int64_t vocab) {
  return std::min(tokens, std::max(kTokenUnit, kChunkLogits / vocab / kTokenUnit * kTokenUnit));
}

// The logits of a chunk of tokens at a time, in one buffer.
class Chunks {
 public:
  Chunks(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
         const at::Tensor& counted)
      : hidden_(hidden),
        head_(head),
        targets_(targets),
        counted_(counted),
        size_(chunk_tokens(hidden.size(0), head.size(0))),
        logits_(at::empty({size_, head.size(0)}, hidden.options().dtype(at::kFloat))),
        scores{at::empty({hidden.size(0)}, logits_.options()),
               at::empty({hidden.size(0)}, hidden.options().dtype(at::kByte))} {}

  // Calls work(first, count) for each chunk.
  template <class Work>
  void for_each(const Work& work) const {
    for (int64_t first = 0; first < hidden_.size(0); first += size_) {
      work(first, std::min(size_, hidden_.size(0) - first));
    }
  }
  int64_t size() const { return size_; }
  at::Tensor input(int64_t first, int64_t count) const { return hidden_.narrow(0, first, count); }
  at::Tensor logits(int64_t count) const { return logits_.narrow(0, 0, count); }

  // Scores of the chunk, and the gradients of its logits, unless null.
  void score(int64_t first, int64_t count, float scale, at::Tensor* d_logits) const {
    at::Tensor logits_of = logits(count);
    product_float(logits_of, input(first, count), head_.t());
    const auto part = [&](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, first, count) : all;
    };
    softmax_scores(logits_of, part(targets_), part(counted_), scale, part(scores.log_probs),
                   part(scores.greedy), d_logits);
  }

 private:
  at::Tensor hidden_, head_, targets_, counted_;
  int64_t size_;
  at::Tensor logits_;

 public:
  TargetScores scores;
};

}  // namespace

at::Tensor fused_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                               const at::Tensor& targets, float scale, at::Tensor& d_hidden,
                               at::Tensor& d_head, const at::Tensor& counted) {
  const Chunks chunks(hidden, head, targets, counted);
  // In float32 the gradients take the logits' place.
  const bool in_place = hidden.scalar_type() == at::kFloat;
  const at::Tensor buffer = in_place ? chunks.logits(chunks.size())
                                     : at::empty({chunks.size(), head.size(0)}, hidden.options());
  chunks.for_each([&](int64_t first, int64_t count) {
    at::Tensor d_logits = buffer.narrow(0, 0, count);
    chunks.score(first, count, scale, &d_logits);
    at::Tensor d_input = d_hidden.narrow(0, first, count);
    at::mm_out(d_input, d_logits, head);
    add_product(d_head, d_logits.t(), chunks.input(first, count));
  });
  return chunks.scores.log_probs.sum(at::kDouble).neg_();
}

TargetScores fused_target_scores(const at::Tensor& hidden, const at::Tensor& head,
                                 const at::Tensor& targets, const at::Tensor& counted) {
  const Chunks chunks(hidden, head, targets, counted);
  chunks.for_each([&](int64_t first, int64_t count) { chunks.score(first, count, 0, nullptr); });
  return chunks.scores;
}

int64_t fused_cross_entropy_bytes(int64_t tokens, int64_t hidden, int64_t vocab, bool bf16) {
  const int64_t of_logit = bf16 ? 4 + 2 : 4, of_hidden = bf16 ? 2 : 4;
  return of_logit * chunk_tokens(tokens, vocab) * vocab + tokens * (of_hidden * hidden + 4 + 1);
}

}  // namespace smalltalk
