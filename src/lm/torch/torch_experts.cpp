#include "lm/torch/torch_experts.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>

#include <algorithm>

#include "lm/torch/block_ops.hpp"
#include "lm/torch/segments_at_once.hpp"

namespace smalltalk {
namespace {

// [E, out, in] -> [E, out * in]
at::Tensor flat(const at::Tensor& experts) { return experts.view({experts.size(0), -1}); }

ModelConfig without_documents(ModelConfig config) {
  config.document_mask = false;
  return config;
}
bool has_gaps(const ModelConfig& config, int64_t length) {
  return length > config.segment_tokens && length % config.segment_tokens != 0;
}

}  // namespace

std::vector<int32_t> document_starts(std::span<const int64_t> tokens, int64_t rows,
                                     int64_t row_tokens, bool targets, int64_t document_end) {
  const int64_t length = row_tokens - (targets ? 1 : 0);
  std::vector<int32_t> starts;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t* line = tokens.data() + row * row_tokens;
    const auto is_end = [&](int64_t t) { return t < row_tokens && line[t] == document_end; };
    for (int64_t t = 0; t < length; ++t) {
      const bool more_padding = t > 0 && is_end(t - 1) && is_end(t + 1);
      const bool first = t == 0 || (is_end(t) && !more_padding);
      starts.push_back(first ? static_cast<int32_t>(t) : starts.back());
    }
  }
  return starts;
}

double MergedSegments::work_bytes(const ModelConfig& config, int64_t rows, int64_t length,
                                  double number_bytes) {
  const int64_t all = max_segments(without_documents(config), rows, length);
  const int64_t segments = std::min(all, segments_at_once(config)), hidden = config.hidden_size;
  const int64_t up = gate_up_width(config), width = std::min(length, config.segment_tokens);
  int64_t numbers = segments * up * hidden;  // merged matrices, or their gradients
  if (has_gaps(config, length)) numbers += segments * width * (up + hidden);
  const int64_t routing = rows * length * hidden;  // the gradient that reaches each token
  return number_bytes * static_cast<double>(std::max(numbers, routing));
}

double MergedSegments::table_bytes(const ModelConfig& config, int64_t rows, int64_t length) {
  const int64_t segments = max_segments(without_documents(config), rows, length);
  const int64_t places = segments * std::min(length, config.segment_tokens);
  constexpr int64_t kIndex = sizeof(int64_t);
  const int64_t of_gaps =  // sources as they came and without gaps, what is filled, places
      has_gaps(config, length) ? places * (2 * kIndex + 1) + rows * length * kIndex : 0;
  return static_cast<double>(rows * length * kIndex + of_gaps);
}

MergedSegments::MergedSegments(const ModelConfig& config, const std::vector<Segment>& segments,
                               int64_t length, bool leaky, at::Device device)
    : leaky_(leaky) {
  const auto count = static_cast<int64_t>(segments.size());
  // All in one copy: sources and sizes of segments, segments of tokens, and for each block that has
  // gaps its sources (-1: none) and places.
  std::vector<int64_t> numbers;
  for (const Segment& segment : segments) numbers.push_back(segment.source);
  for (const Segment& segment : segments) numbers.push_back(segment.size);
  for (int64_t s = 0; s < count; ++s) numbers.insert(numbers.end(), segments[s].size, s);
  const int64_t tokens = static_cast<int64_t>(numbers.size()) - 2 * count;
  const int64_t at_once = segments_at_once(config);
  for (int64_t s = 0; s < count; ++s) {
    const Segment& segment = segments[s];
    const bool new_row = segment.begin % length == 0;
    if (s == 0 || blocks_.back().count == at_once || (config.document_mask && new_row)) {
      blocks_.push_back({s, 0, segment.begin, 0, 0, {}, {}, {}});
    }
    Block& block = blocks_.back();
    ++block.count;
    block.tokens += segment.size;
    block.width = std::max(block.width, segment.size);
  }
  const auto full = [](const Block& block) { return block.tokens == block.count * block.width; };
  for (const Block& block : blocks_) {
    if (full(block)) continue;
    std::vector<int64_t> places;
    for (int64_t i = 0; i < block.count; ++i) {
      const Segment& segment = segments[block.first + i];
      for (int64_t t = 0; t < block.width; ++t) {
        const bool filled = t < segment.size;
        numbers.push_back(filled ? segment.begin - block.begin + t : -1);
        if (filled) places.push_back(i * block.width + t);
      }
    }
    numbers.insert(numbers.end(), places.begin(), places.end());
  }
  const at::Tensor all = copied_to(device, numbers);
  int64_t next = 0;
  const auto take = [&](int64_t size) {
    next += size;
    return all.narrow(0, next - size, size);
  };
  sources_ = take(count);
  sizes_ = take(count).to(at::kFloat).unsqueeze(1);
  segment_of_ = take(tokens);
  routed_ = (sources_ != at::arange(count, sources_.options())).unsqueeze(1);
  for (Block& block : blocks_) {
    if (full(block)) continue;
    const at::Tensor sources = take(block.count * block.width);
    block.sources = sources.clamp_min(0);
    block.filled = (sources >= 0).unsqueeze(1);
    block.places = take(block.tokens);
  }
}

// x [T, C] -> [count, width, C]. `zeros`: where there is no token; else anything.
at::Tensor MergedSegments::padded(const Block& block, const at::Tensor& x, bool zeros) {
  const at::Tensor own = x.narrow(0, block.begin, block.tokens);
  if (!block.sources.defined()) return own.view({block.count, block.width, -1});
  at::Tensor result = own.index_select(0, block.sources);
  if (zeros) result.mul_(block.filled);
  return result.view({block.count, block.width, -1});
}

// -> [count, out, in]
at::Tensor MergedSegments::merged(const Block& block, const at::Tensor& experts,
                                  const at::Tensor& weights) {
  const at::Tensor shares = weights.narrow(0, block.first, block.count).to(experts.scalar_type());
  return at::mm(shares, flat(experts)).view({block.count, experts.size(1), experts.size(2)});
}

// a [count, width, m] times b [count, m, n], to the block's tokens of out [T, n].
void MergedSegments::multiply(const Block& block, const at::Tensor& a, const at::Tensor& b,
                              at::Tensor& out) {
  at::Tensor own = out.narrow(0, block.begin, block.tokens);
  if (!block.sources.defined()) {
    at::Tensor result = own.view({block.count, block.width, -1});
    at::bmm_out(result, a, b);
  } else {
    at::index_select_out(own, at::bmm(a, b).flatten(0, 1), 0, block.places);
  }
}

at::Tensor MergedSegments::pooled(const at::Tensor& x) const {
  std::vector<at::Tensor> sums;
  for (const Block& block : blocks_) {
    sums.push_back(at::sum(padded(block, x, true), 1, false, at::kFloat));
  }
  return (at::cat(sums) / sizes_).index_select(0, sources_);
}

at::Tensor MergedSegments::route(const at::Tensor& x, const at::Tensor& router) const {
  const at::Tensor weights = at::softmax(at::mm(pooled(x), router.to(at::kFloat).t()), -1);
  if (leaky_) return weights;
  return at::where(routed_, weights,
                   at::full_like(weights, 1 / static_cast<double>(weights.size(1))));
}

at::Tensor MergedSegments::product(const at::Tensor& x, const at::Tensor& experts,
                                   const at::Tensor& weights) const {
  at::Tensor out = at::empty({x.size(0), experts.size(1)}, x.options());
  for (const Block& block : blocks_) {
    const at::Tensor matrices = merged(block, experts, weights);
    multiply(block, padded(block, x, false), matrices.transpose(1, 2), out);
  }
  return out;
}

at::Tensor MergedSegments::product_backward(const at::Tensor& x, TorchWeight& experts,
                                            const at::Tensor& weights, const at::Tensor& d_out,
                                            at::Tensor& d_weights) const {
  const at::Tensor& value = experts.value;
  at::Tensor d_x = at::empty_like(x), d_flat = flat(experts.gradient);
  for (const Block& block : blocks_) {
    const at::Tensor d_own = padded(block, d_out, true);
    multiply(block, d_own, merged(block, value, weights), d_x);
    // Of the merged matrices, [count, out, in], rounded to the type.
    const at::Tensor d_merged = at::bmm(d_own.transpose(1, 2), padded(block, x, false));
    const at::Tensor shares = weights.narrow(0, block.first, block.count).to(value.scalar_type());
    add_product(d_flat, shares.t(), flat(d_merged));
    // Products with each expert, a row of both at a time: [out, count, in] by [out, in, E].
    at::Tensor of_rows = at::empty({value.size(1), block.count, value.size(0)}, weights.options());
    product_float(of_rows, d_merged.transpose(0, 1), value.permute({1, 2, 0}));
    d_weights.narrow(0, block.first, block.count).add_(of_rows.sum(0));
  }
  return d_x;
}

void MergedSegments::route_backward(const at::Tensor& x, TorchWeight& router,
                                    const at::Tensor& weights, const at::Tensor& d_weights,
                                    at::Tensor& d_x) const {
  const at::Tensor mean = (weights * d_weights).sum(-1, true);
  const at::Tensor d_logits = weights * (d_weights - mean) * routed_;  // first ones are constants
  router.gradient[0].addmm_(d_logits.t(), pooled(x));
  const at::Tensor d_pooled = at::mm(d_logits, router.value[0].to(at::kFloat));
  // The gradients of the means, summed up by their segment.
  const at::Tensor d_means =
      at::embedding_dense_backward(d_pooled, sources_, sources_.size(0), -1, false);
  d_x.add_((d_means / sizes_).to(d_x.scalar_type()).index_select(0, segment_of_));
}

}  // namespace smalltalk
