// Causal attention of heads so narrow that matrix products would waste most of a vector: queries
// (or keys) lie in the lanes instead, so that nothing is ever summed across lanes and the
// probabilities never leave the registers.
#include <cmath>

#include "lm/cpu/isa_kernels.hpp"
#include "lm/cpu/isa_simd.hpp"

namespace smalltalk::ST_ISA {
namespace {

constexpr int kKeys = 16;  // whose scores are known before the running maximum moves
constexpr float kMasked = -1e30F;
constexpr float kLog2e = 1.44269504F;

ST_INLINE Vec lane_index() {
  Vec index{};
  for (int i = 0; i < kLanes; ++i) index[i] = static_cast<float>(i);
  return index;
}

// out [D, padded] <- factor * x^T; columns beyond `length` are zero.
template <int D>
void transpose(const float* x, int64_t stride, int64_t length, float factor, int64_t padded,
               float* out) {
  for (int64_t t = 0; t < length; ++t) {
    for (int d = 0; d < D; ++d) out[d * padded + t] = factor * x[t * stride + d];
  }
  for (int d = 0; d < D; ++d) {
    for (int64_t t = length; t < padded; ++t) out[d * padded + t] = 0;
  }
}

// Rows first .. first + kLanes (below `length`) of `to` <- factor * lanes of values [D].
template <int D, bool Add>
ST_INLINE void scatter(const Vec (&values)[D], Vec factor, int64_t first, int64_t length,
                       int64_t stride, float* to) {
  float lanes[D][kLanes];
  for (int d = 0; d < D; ++d) store(lanes[d], values[d] * factor);
  const int64_t count = min_of(kLanes, length - first);
  for (int64_t i = 0; i < count; ++i) {
    float* row = to + (first + i) * stride;
    for (int d = 0; d < D; ++d) row[d] = Add ? row[d] + lanes[d][i] : lanes[d][i];
  }
}

template <int D>
ST_INLINE Vec dot(const Vec (&lanes)[D], const float* row) {
  Vec sum = lanes[0] * row[0];
#pragma GCC unroll 16
  for (int d = 1; d < D; ++d) sum += lanes[d] * row[d];
  return sum;
}

// The first keys that the queries first .. first + kLanes see, counted from `first`, and the last
// query's.
struct FirstKeys {
  Vec lanes{};
  int64_t last = 0;
};

ST_INLINE FirstKeys first_keys(const HeadAttention& a, int64_t first) {
  FirstKeys keys;
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    keys.last = a.starts[min_of(first + i, a.length - 1)];
    lanes[i] = static_cast<float>(keys.last - first);
  }
  keys.lanes = load(lanes);
  return keys;
}

template <int D, bool Documents>
void forward(const HeadAttention& a, float* out) {
  const int64_t padded = round_up(a.length, kLanes);
  float* queries = a.scratch;  // [D, padded]
  transpose<D>(a.q, a.stride, a.length, kLog2e / std::sqrt(static_cast<float>(D)), padded, queries);
  const Vec index = lane_index();
  for (int64_t first = 0; first < a.length; first += kLanes) {
    Vec q[D], o[D];
    for (int d = 0; d < D; ++d) {
      q[d] = load(queries + d * padded + first);
      o[d] = Vec{};
    }
    Vec top = broadcast(kMasked), sum = Vec{};
    const int64_t seen = min_of(a.length, first + kLanes);
    const FirstKeys starts = Documents ? first_keys(a, first) : FirstKeys();
    for (int64_t key = Documents ? a.starts[first] : 0; key < seen; key += kKeys) {
      const int count = static_cast<int>(min_of(kKeys, seen - key));
      Vec scores[kKeys];
      Vec best = top;
      for (int j = 0; j < count; ++j) {
        scores[j] = dot<D>(q, a.k + (key + j) * a.stride);
        if (key + j > first) {
          scores[j] = index < static_cast<float>(key + j - first) ? broadcast(kMasked) : scores[j];
        }
        if (Documents && key + j < starts.last) {
          scores[j] =
              starts.lanes > static_cast<float>(key + j - first) ? broadcast(kMasked) : scores[j];
        }
        best = max_of(best, scores[j]);
      }
      const Vec factor = exp2_of(top - best);
      top = best;
      sum *= factor;
#pragma GCC unroll 16
      for (int d = 0; d < D; ++d) o[d] *= factor;
      for (int j = 0; j < count; ++j) {
        const Vec p = exp2_of(scores[j] - top);
        const float* v = a.v + (key + j) * a.stride;
        sum += p;
#pragma GCC unroll 16
        for (int d = 0; d < D; ++d) o[d] += p * v[d];
      }
    }
    scatter<D, false>(o, 1.0F / sum, first, a.length, a.out_stride, out);
    float tops[kLanes], sums[kLanes];
    store(tops, top);
    store(sums, sum);
    for (int64_t i = 0; i < min_of(kLanes, a.length - first); ++i) {
      a.lse[first + i] = tops[i] + std::log2(sums[i]);
    }
  }
}

// With P the probabilities and dS = P * (dO V^T - rowsum(dO * O)): dQ = dS K, dK = dS^T Q, dV = P^T
// dO. Two passes, queries in the lanes for dQ and keys for dK and dV; each computes P anew.
template <int D, bool Documents>
void backward(const HeadAttention& a, float* d_q, float* d_k, float* d_v) {
  const int64_t length = a.length, padded = round_up(length, kLanes);
  const float scale = 1.0F / std::sqrt(static_cast<float>(D));
  float* first_lanes = a.scratch;                  // [D, padded]: queries, then keys
  float* second_lanes = first_lanes + D * padded;  // [D, padded]: d_out, then values
  float* lse = second_lanes + D * padded;          // [padded]
  float* products = lse + padded;                  // [padded]: rowsum(dO * O)
  for (int64_t t = 0; t < padded; ++t) {
    float sum = 0;
    for (int d = 0; d < D && t < length; ++d) {
      sum += a.out[t * a.out_stride + d] * a.d_out[t * a.out_stride + d];
    }
    products[t] = sum;
    lse[t] = t < length ? a.lse[t] : 0.0F;
  }
  const Vec index = lane_index();

  transpose<D>(a.q, a.stride, length, kLog2e * scale, padded, first_lanes);
  transpose<D>(a.d_out, a.out_stride, length, 1, padded, second_lanes);
  for (int64_t first = 0; first < length; first += kLanes) {
    Vec q[D], d_o[D], sums[D];
    for (int d = 0; d < D; ++d) {
      q[d] = load(first_lanes + d * padded + first);
      d_o[d] = load(second_lanes + d * padded + first);
      sums[d] = Vec{};
    }
    const Vec shift = load(lse + first), product = load(products + first);
    const FirstKeys starts = Documents ? first_keys(a, first) : FirstKeys();
    const auto visit = [&](int64_t key, bool masked) __attribute__((always_inline)) {
      const float* k = a.k + key * a.stride;
      Vec p = exp2_of(dot<D>(q, k) - shift);
      if (masked) p = index < static_cast<float>(key - first) ? Vec{} : p;
      if (Documents && key < starts.last) {
        p = starts.lanes > static_cast<float>(key - first) ? Vec{} : p;
      }
      const Vec d_score = p * (dot<D>(d_o, a.v + key * a.stride) - product);
#pragma GCC unroll 16
      for (int d = 0; d < D; ++d) sums[d] += d_score * k[d];
    };
    for (int64_t key = Documents ? a.starts[first] : 0; key <= first; ++key) visit(key, false);
    for (int64_t key = first + 1; key < min_of(length, first + kLanes); ++key) visit(key, true);
    scatter<D, false>(sums, broadcast(scale), first, length, a.stride, d_q);
  }

  transpose<D>(a.k, a.stride, length, kLog2e * scale, padded, first_lanes);
  transpose<D>(a.v, a.stride, length, 1, padded, second_lanes);
  for (int64_t first = 0; first < length; first += kLanes) {
    Vec k[D], v[D], k_sums[D], v_sums[D];
    for (int d = 0; d < D; ++d) {
      k[d] = load(first_lanes + d * padded + first);
      v[d] = load(second_lanes + d * padded + first);
      k_sums[d] = v_sums[d] = Vec{};
    }
    const auto visit = [&](int64_t query, bool masked) __attribute__((always_inline)) {
      const float* q = a.q + query * a.stride;
      const float* d_o = a.d_out + query * a.out_stride;
      Vec p = exp2_of(dot<D>(k, q) - lse[query]);
      if (masked) p = index > static_cast<float>(query - first) ? Vec{} : p;
      if (Documents && a.starts[query] > first) {
        p = index < static_cast<float>(a.starts[query] - first) ? Vec{} : p;
      }
      const Vec d_score = p * (dot<D>(v, d_o) - products[query]);
#pragma GCC unroll 16
      for (int d = 0; d < D; ++d) {
        k_sums[d] += d_score * q[d];
        v_sums[d] += p * d_o[d];
      }
    };
    const int64_t last = min_of(length, first + kLanes);
    for (int64_t query = first; query < last; ++query) visit(query, true);
    for (int64_t query = last; query < length; ++query) {
      if (Documents && a.starts[query] >= last) break;  // nor do those after it see these keys
      visit(query, false);
    }
    scatter<D, true>(k_sums, broadcast(scale), first, length, a.stride, d_k);
    scatter<D, true>(v_sums, broadcast(1), first, length, a.stride, d_v);
  }
}

}  // namespace

bool fits_head(int64_t head_dim) { return head_dim == 8 || head_dim == 16; }

void head_attention_forward(const HeadAttention& head, float* out) {
  const auto run = head.starts != nullptr
                       ? (head.head_dim == 8 ? forward<8, true> : forward<16, true>)
                       : (head.head_dim == 8 ? forward<8, false> : forward<16, false>);
  run(head, out);
}

void head_attention_backward(const HeadAttention& head, float* d_q, float* d_k, float* d_v) {
  const auto run = head.starts != nullptr
                       ? (head.head_dim == 8 ? backward<8, true> : backward<16, true>)
                       : (head.head_dim == 8 ? backward<8, false> : backward<16, false>);
  run(head, d_q, d_k, d_v);
}

}  // namespace smalltalk::ST_ISA
