#include "lm/cpu/cpu_attention.hpp"

#include <algorithm>
#include <cmath>

#include "lm/cpu/cpu_kernels.hpp"
#include "lm/cpu/elementwise.hpp"
#include "lm/cpu/gemm.hpp"

namespace smalltalk {

int64_t attention_scratch_size(int64_t length, int64_t head_dim) {
  return cpu_kernels().fits_head(head_dim) ? head_attention_scratch(length, head_dim)
                                           : 2 * kQueryBlock * length;
}

void attention_forward(const CpuKernels& kernels, const AttentionShape& shape, const float* qkv,
                       float* out, float* lse, float* scratch) {
  const int64_t length = shape.length, dim = shape.head_dim;
  const int64_t stride = shape.qkv_stride(), out_stride = shape.out_stride();
  const int64_t per_kv = shape.heads / shape.kv_heads;
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  for (int64_t row = 0; row < shape.rows; ++row) {
    const float* base = qkv + row * length * stride;
    const int32_t* starts = shape.starts == nullptr ? nullptr : shape.starts + row * length;
    const auto first_key = [starts](int64_t t) { return starts == nullptr ? 0 : starts[t]; };
    for (int64_t head = 0; head < shape.heads; ++head) {
      const float* query = base + head * dim;
      const float* key = base + (shape.heads + head / per_kv) * dim;
      const float* value = key + shape.kv_heads * dim;
      float* result = out + row * length * out_stride + head * dim;
      float* row_lse = lse + (row * shape.heads + head) * length;
      if (kernels.fits_head(dim)) {
        kernels.head_attention_forward({length, dim, query, key, value, stride, nullptr, nullptr,
                                        out_stride, row_lse, scratch, starts},
                                       result);
        continue;
      }
      for (int64_t first = 0; first < length; first += kQueryBlock) {
        const int64_t count = std::min(kQueryBlock, length - first);
        const int64_t low = first_key(first), keys = first + count - low;
        float* scores = scratch;  // [count, keys], of the keys from `low` on
        gemm_nt(count, keys, dim, scale, {query + first * stride, stride},
                {key + low * stride, stride}, false, {scores, keys});
        float sums[kQueryBlock];
        for (int64_t i = 0; i < count; ++i) {
          const int64_t begin = first_key(first + i) - low, seen = first + i + 1 - low;
          float* line = scores + i * keys;
          float maximum = 0;
          sums[i] = elementwise().exp_row(line + begin, seen - begin, &maximum);
          std::fill(line, line + begin, 0.0F);
          std::fill(line + seen, line + keys, 0.0F);
          row_lse[first + i] = maximum + std::log(sums[i]);
        }
        float* part = result + first * out_stride;
        gemm_nn(count, dim, keys, 1, {scores, keys}, {value + low * stride, stride}, false,
                {part, out_stride});
        for (int64_t i = 0; i < count; ++i)
          elementwise().scale_row(part + i * out_stride, dim, 1.0F / sums[i]);
      }
    }
  }
}

void attention_backward(const CpuKernels& kernels, const AttentionShape& shape, const float* qkv,
                        const float* out, const float* lse, const float* d_out, float* d_qkv,
                        float* scratch) {
  const int64_t length = shape.length, dim = shape.head_dim;
  const int64_t stride = shape.qkv_stride(), out_stride = shape.out_stride();
  const int64_t per_kv = shape.heads / shape.kv_heads;
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  for (int64_t row = 0; row < shape.rows; ++row) {
    const float* base = qkv + row * length * stride;
    const int32_t* starts = shape.starts == nullptr ? nullptr : shape.starts + row * length;
    const auto first_key = [starts](int64_t t) { return starts == nullptr ? 0 : starts[t]; };
    float* d_base = d_qkv + row * length * stride;
    for (int64_t t = 0; t < length; ++t) {
      // Keys and values gather from several query blocks (and heads, when grouped).
      std::fill_n(d_base + t * stride + shape.heads * dim, 2 * shape.kv_heads * dim, 0.0F);
    }
    for (int64_t head = 0; head < shape.heads; ++head) {
      const float* query = base + head * dim;
      const float* key = base + (shape.heads + head / per_kv) * dim;
      const float* value = key + shape.kv_heads * dim;
      float* d_query = d_base + (query - base);
      float* d_key = d_base + (key - base);
      float* d_value = d_base + (value - base);
      const float* result = out + row * length * out_stride + head * dim;
      const float* d_result = d_out + row * length * out_stride + head * dim;
      const float* row_lse = lse + (row * shape.heads + head) * length;
      if (kernels.fits_head(dim)) {
        kernels.head_attention_backward({length, dim, query, key, value, stride, result, d_result,
                                         out_stride, const_cast<float*>(row_lse), scratch, starts},
                                        d_query, d_key, d_value);
        continue;
      }
      for (int64_t first = 0; first < length; first += kQueryBlock) {
        const int64_t count = std::min(kQueryBlock, length - first);
        const int64_t low = first_key(first), keys = first + count - low;
        const Matrix seen_keys = {key + low * stride, stride};
        const Matrix seen_values = {value + low * stride, stride};
        float* probability = scratch;                           // [count, keys]
        float* d_probability = scratch + kQueryBlock * length;  // [count, keys]
        const Matrix queries = {query + first * stride, stride};
        const Matrix d_part = {d_result + first * out_stride, out_stride};
        gemm_nt(count, keys, dim, scale, queries, seen_keys, false, {probability, keys});
        for (int64_t i = 0; i < count; ++i) {
          const int64_t begin = first_key(first + i) - low, seen = first + i + 1 - low;
          float* line = probability + i * keys;
          elementwise().exp_shifted(line + begin, seen - begin, row_lse[first + i]);
          std::fill(line, line + begin, 0.0F);
          std::fill(line + seen, line + keys, 0.0F);
        }
        gemm_tn(keys, dim, count, 1, {probability, keys}, d_part, true,
                {d_value + low * stride, stride});
        gemm_nt(count, keys, dim, 1, d_part, seen_values, false, {d_probability, keys});
        for (int64_t i = 0; i < count; ++i) {
          const int64_t at = (first + i) * out_stride;
          const float dot = elementwise().dot_product(result + at, d_result + at, dim);
          const int64_t begin = first_key(first + i) - low;
          elementwise().softmax_backward_row(probability + i * keys + begin,
                                             d_probability + i * keys + begin,
                                             first + i + 1 - low - begin, dot, scale);
        }
        const Matrix d_scores = {probability, keys};
        gemm_nn(count, dim, keys, 1, d_scores, seen_keys, false,
                {d_query + first * stride, stride});
        gemm_tn(keys, dim, count, 1, d_scores, queries, true, {d_key + low * stride, stride});
      }
    }
  }
}

}  // namespace smalltalk
