// The softmax of the output projection, with tokens in the lanes and the vocabulary along rows.
#include "lm/cpu/isa_kernels.hpp"
#include "lm/cpu/isa_simd.hpp"

namespace smalltalk::ST_ISA {
namespace {

constexpr int kGroup = 8;  // vectors of tokens that are worked on together, to hide latencies

template <int Vectors, bool Keep>
bool chunk(float* logits, int64_t rows, int64_t stride, float* maximum, float* sum, float* factor) {
  Vec before[Vectors], top[Vectors];
  for (int i = 0; i < Vectors; ++i) before[i] = top[i] = load(maximum + i * kLanes);
  for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 8
    for (int i = 0; i < Vectors; ++i) {
      top[i] = max_of(top[i], load(logits + row * stride + i * kLanes));
    }
  }
  Vec sums[Vectors];
  bool changed = false;
  for (int i = 0; i < Vectors; ++i) {
    const Vec change = exp2_of(before[i] - top[i]);
    for (int lane = 0; lane < kLanes; ++lane) changed = changed || change[lane] != 1.0F;
    store(factor + i * kLanes, change);
    store(maximum + i * kLanes, top[i]);
    sums[i] = Vec{};
  }
  for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 8
    for (int i = 0; i < Vectors; ++i) {
      float* at = logits + row * stride + i * kLanes;
      const Vec e = exp2_of(load(at) - top[i]);
      if (Keep) store(at, e);
      sums[i] += e;
    }
  }
  // A chunk's sum is whole before it joins the others: fewer roundings than one long sum.
  for (int i = 0; i < Vectors; ++i) {
    store(sum + i * kLanes, load(sum + i * kLanes) * load(factor + i * kLanes) + sums[i]);
  }
  return changed;
}

template <bool Keep>
bool all_tokens(float* logits, int64_t rows, int64_t tokens, const RunningSoftmax& r) {
  bool changed = false;
  const auto part = [&](auto function, int64_t t) {
    changed |= function(logits + t, rows, tokens, r.maximum + t, r.sum + t, r.factor + t);
  };
  int64_t t = 0;
  for (; t + kGroup * kLanes <= tokens; t += kGroup * kLanes) part(chunk<kGroup, Keep>, t);
  for (; t < tokens; t += kLanes) part(chunk<1, Keep>, t);
  return changed;
}

}  // namespace

bool softmax_chunk(float* logits, int64_t rows, int64_t tokens, const RunningSoftmax& running) {
  return all_tokens<true>(logits, rows, tokens, running);
}

void softmax_chunk_sums(const float* logits, int64_t rows, int64_t tokens,
                        const RunningSoftmax& running) {
  all_tokens<false>(const_cast<float*>(logits), rows, tokens, running);
}

}  // namespace smalltalk::ST_ISA
