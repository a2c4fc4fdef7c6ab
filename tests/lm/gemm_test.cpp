// The three matrix products against float64, at sizes around the tiles of our own kernel.
#include "lm/cpu/gemm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "fixtures.hpp"
#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk {
namespace {

struct Sizes {
  int64_t m, n, k;
};

// multiply(kind, product): by the kernels of one instruction set, or as the engine does it.
void check_products(const Sizes& sizes,
                    const std::function<void(const std::string&, const Product&)>& multiply) {
  const auto [m, n, k] = sizes;
  constexpr int64_t kPadding = 3;  // rows are further apart than they are long
  for (const char* kind : {"nt", "nn", "tn"}) {
    const bool a_transposed = kind[0] == 't', b_transposed = kind[1] == 't';
    const int64_t a_stride = (a_transposed ? m : k) + kPadding;
    const int64_t b_stride = (b_transposed ? k : n) + kPadding;
    const int64_t c_stride = n + kPadding;
    const auto a = random_floats(a_stride * (a_transposed ? k : m), 1);
    const auto b = random_floats(b_stride * (b_transposed ? n : k), 2);
    for (const bool accumulate : {false, true}) {
      const auto before = random_floats(c_stride * m, 3);
      std::vector<float> c = before;
      multiply(kind, {m, n, k, a.data(), a_stride, a_transposed, b.data(), b_stride, b_transposed,
                      c.data(), c_stride, 0.25F, accumulate});
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < c_stride; ++j) {
          const float old = before[i * c_stride + j];
          if (j >= n) {
            ASSERT_EQ(c[i * c_stride + j], old) << "wrote between the rows";
            continue;
          }
          double sum = 0;
          for (int64_t p = 0; p < k; ++p) {
            const float left = a_transposed ? a[p * a_stride + i] : a[i * a_stride + p];
            const float right = b_transposed ? b[j * b_stride + p] : b[p * b_stride + j];
            sum += static_cast<double>(left) * right;
          }
          ASSERT_NEAR(c[i * c_stride + j], 0.25 * sum + (accumulate ? old : 0.0F),
                      1e-6 * static_cast<double>(k) + 1e-5)
              << kind << " " << i << " " << j;
        }
      }
    }
  }
}

class GemmTest : public testing::TestWithParam<Sizes> {};

TEST_P(GemmTest, AgreesWithFloat64) {
  check_products(GetParam(), [](const std::string& kind, const Product& g) {
    const auto product = kind == "tn" ? gemm_tn : kind == "nt" ? gemm_nt : gemm_nn;
    product(g.m, g.n, g.k, g.alpha, {g.a, g.a_stride}, {g.b, g.b_stride}, g.accumulate,
            {g.c, g.c_stride});
  });
}

TEST_P(GemmTest, KernelsOfEveryInstructionSetAgreeWithFloat64) {
  for (const CpuKernels* kernels : cpu_kernel_copies().runnable) {
    SCOPED_TRACE(kernels->instruction_set);
    check_products(GetParam(), [&](const std::string&, const Product& g) { kernels->product(g); });
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, GemmTest,
                         testing::Values(Sizes{1, 1, 1}, Sizes{12, 32, 16}, Sizes{13, 33, 17},
                                         Sizes{25, 16, 256}, Sizes{7, 47, 257}, Sizes{31, 15, 40},
                                         Sizes{64, 100, 600}, Sizes{300, 150, 300},
                                         // Dot products, and few long rows.
                                         Sizes{8, 8, 5000}, Sizes{5, 7, 2050}, Sizes{13, 16, 64},
                                         Sizes{16, 500, 8}, Sizes{8, 4097, 16}));

}  // namespace
}  // namespace smalltalk
