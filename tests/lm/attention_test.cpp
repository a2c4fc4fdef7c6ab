// Causal attention and its gradients against float64, for head dimensions with a kernel of their
// own and without, for every instruction set.
#include <gtest/gtest.h>

#include <cmath>

#include "fixtures.hpp"
#include "lm/cpu/cpu_attention.hpp"
#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk {
namespace {

using Values = std::vector<double>;

struct Truth {
  Values out, d_qkv;
};

// By the definition: a query sees the keys from its document's start on. qkv [rows * length, (heads
// + 2 kv) d].
Truth reference(const AttentionShape& s, const Values& qkv, const Values& d_out) {
  const int64_t dim = s.head_dim, stride = s.qkv_stride(), out_stride = s.out_stride();
  Truth truth{Values(d_out.size()), Values(qkv.size())};
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t head = 0; head < s.heads; ++head) {
      const int64_t kv = head / (s.heads / s.kv_heads);
      const auto at = [&](int64_t t, int64_t slot) {
        return (row * s.length + t) * stride + slot * dim;
      };
      for (int64_t i = 0; i < s.length; ++i) {
        const int64_t q = at(i, head), o = (row * s.length + i) * out_stride + head * dim;
        const int64_t start = s.starts == nullptr ? 0 : s.starts[row * s.length + i];
        Values p(static_cast<size_t>(i + 1)), d_p(p.size());
        double sum = 0, dot = 0;
        for (int64_t j = start; j <= i; ++j) {
          double score = 0;
          for (int64_t d = 0; d < dim; ++d) score += qkv[q + d] * qkv[at(j, s.heads + kv) + d];
          sum += p[j] = std::exp(score / std::sqrt(static_cast<double>(dim)));
        }
        for (int64_t j = start; j <= i; ++j) {
          p[j] /= sum;
          const int64_t v = at(j, s.heads + s.kv_heads + kv);
          for (int64_t d = 0; d < dim; ++d) {
            truth.out[o + d] += p[j] * qkv[v + d];
            truth.d_qkv[v + d] += p[j] * d_out[o + d];
            d_p[j] += d_out[o + d] * qkv[v + d];
          }
          dot += p[j] * d_p[j];
        }
        for (int64_t j = start; j <= i; ++j) {
          const double d_score = p[j] * (d_p[j] - dot) / std::sqrt(static_cast<double>(dim));
          const int64_t k = at(j, s.heads + kv);
          for (int64_t d = 0; d < dim; ++d) {
            truth.d_qkv[q + d] += d_score * qkv[k + d];
            truth.d_qkv[k + d] += d_score * qkv[q + d];
          }
        }
      }
    }
  }
  return truth;
}

// A document begins at one token of so many.
std::vector<int32_t> document_starts(const AttentionShape& s, uint64_t tokens) {
  std::vector<int32_t> starts;
  for (int64_t i = 0; i < s.rows * s.length; ++i) {
    const auto t = static_cast<int32_t>(i % s.length);
    const bool begins =
        t == 0 || derive_seed(5, "documents", static_cast<uint64_t>(i)) % tokens == 0;
    starts.push_back(begins ? t : starts.back());
  }
  return starts;
}

class AttentionTest : public testing::TestWithParam<AttentionShape> {};

void expect_agreement(const AttentionShape& s) {
  const int64_t tokens = s.rows * s.length;
  const std::vector<float> qkv = random_floats(tokens * s.qkv_stride(), 1);
  const std::vector<float> d_out = random_floats(tokens * s.out_stride(), 2);
  const Truth truth = reference(s, {qkv.begin(), qkv.end()}, {d_out.begin(), d_out.end()});
  for (const CpuKernels* kernels : cpu_kernel_copies().runnable) {
    SCOPED_TRACE(kernels->instruction_set);
    std::vector<float> out(d_out.size()), d_qkv(qkv.size(), NAN);
    std::vector<float> lse(static_cast<size_t>(s.rows * s.heads * s.length));
    std::vector<float> scratch(static_cast<size_t>(attention_scratch_size(s.length, s.head_dim)));
    attention_forward(*kernels, s, qkv.data(), out.data(), lse.data(), scratch.data());
    attention_backward(*kernels, s, qkv.data(), out.data(), lse.data(), d_out.data(), d_qkv.data(),
                       scratch.data());
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], truth.out[i], 1e-5) << i;
    for (size_t i = 0; i < qkv.size(); ++i) ASSERT_NEAR(d_qkv[i], truth.d_qkv[i], 5e-5) << i;
  }
}

TEST_P(AttentionTest, AgreesWithFloat64) { expect_agreement(GetParam()); }

// From documents of a token to some that are longer than a block.
TEST_P(AttentionTest, WithinDocumentsAgreesWithFloat64) {
  for (const uint64_t tokens : {1, 3, 20, 60}) {
    SCOPED_TRACE(tokens);
    AttentionShape shape = GetParam();
    const std::vector<int32_t> starts = document_starts(shape, tokens);
    shape.starts = starts.data();
    expect_agreement(shape);
  }
}

// Lengths around a vector and around a block of keys; grouped heads; the paper's router.
INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionTest,
    testing::Values(AttentionShape{2, 1, 1, 1, 8}, AttentionShape{1, 15, 2, 2, 8},
                    AttentionShape{1, 16, 2, 1, 16}, AttentionShape{2, 17, 4, 2, 8},
                    AttentionShape{1, 33, 2, 2, 32}, AttentionShape{1, 100, 3, 3, 16},
                    AttentionShape{1, 255, 12, 12, 8}, AttentionShape{1, 70, 2, 1, 12}));

}  // namespace
}  // namespace smalltalk
