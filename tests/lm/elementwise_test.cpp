// The elementwise kernels of every instruction set against float64.
#include "lm/cpu/elementwise.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "fixtures.hpp"

namespace smalltalk {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A width around a vector, or of several with a rest.
class ElementwiseTest : public testing::TestWithParam<int64_t> {
 protected:
  // check(kernels) for every copy.
  template <typename Check>
  void with_every_copy(Check check) {
    for (const ElementwiseKernels* kernels : elementwise_copies().runnable) {
      SCOPED_TRACE(kernels->instruction_set);
      check(*kernels);
    }
  }

  const int64_t width = GetParam();
  const std::vector<float> a = random_floats(2 * width, 1), b = random_floats(2 * width, 2);
};

INSTANTIATE_TEST_SUITE_P(Widths, ElementwiseTest, testing::Values(2, 4, 16, 18, 94, 130));

TEST_P(ElementwiseTest, NormAndItsGradient) {
  const std::vector<float> weight = random_floats(width, 3);
  with_every_copy([&](const ElementwiseKernels& kernels) {
    std::vector<float> out(a.size()), rstd(2), d_x(a.size(), 1), d_weight(weight.size(), 1);
    kernels.rms_norm_forward(a.data(), weight.data(), 1e-5F, 2, width, out.data(), rstd.data());
    kernels.rms_norm_backward(a.data(), weight.data(), rstd.data(), b.data(), 2, width, d_x.data(),
                              d_weight.data());
    std::vector<double> d_weight_truth(weight.size(), 1);
    for (int64_t t = 0; t < 2; ++t) {
      double squares = 0, dot = 0;
      for (int64_t i = 0; i < width; ++i) {
        const double x = a[t * width + i];
        squares += x * x;
        dot += static_cast<double>(b[t * width + i]) * weight[i] * x;
      }
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
      for (int64_t i = 0; i < width; ++i) {
        const double x = a[t * width + i], d = b[t * width + i];
        EXPECT_NEAR(out[t * width + i], x * scale * weight[i], 1e-5);
        EXPECT_NEAR(d_x[t * width + i],
                    1 + d * weight[i] * scale -
                        x * dot * scale * scale * scale / static_cast<double>(width),
                    2e-5);
        d_weight_truth[i] += d * x * scale;
      }
    }
    for (int64_t i = 0; i < width; ++i) EXPECT_NEAR(d_weight[i], d_weight_truth[i], 1e-5);
  });
}

TEST_P(ElementwiseTest, RotationOfTheFirstHeadsAndBack) {
  const int64_t half = width / 2, stride = width + 3;  // one head of two is rotated
  const std::vector<float> before = random_floats(2 * stride, 4), angle = random_floats(width, 5);
  std::vector<float> cosine, sine;
  for (const float value : angle) {
    cosine.push_back(std::cos(value));
    sine.push_back(std::sin(value));
  }
  with_every_copy([&](const ElementwiseKernels& kernels) {
    std::vector<float> x = before;
    kernels.rotate_heads(x.data(), stride, 2, 2, 1, width, cosine.data(), sine.data(), 1);
    for (int64_t t = 0; t < 2; ++t) {
      for (int64_t j = 0; j < half; ++j) {
        const double low = before[t * stride + j], high = before[t * stride + half + j];
        const double c = cosine[t * half + j], s = sine[t * half + j];
        EXPECT_NEAR(x[t * stride + j], low * c - high * s, 1e-6);
        EXPECT_NEAR(x[t * stride + half + j], high * c + low * s, 1e-6);
      }
      for (int64_t i = width; i < stride; ++i) EXPECT_EQ(x[t * stride + i], before[t * stride + i]);
    }
    kernels.rotate_heads(x.data(), stride, 2, 2, 1, width, cosine.data(), sine.data(), -1);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], before[i], 1e-6);
  });
}

TEST_P(ElementwiseTest, ActivationsAndTheirGradients) {
  with_every_copy([&](const ElementwiseKernels& kernels) {
    std::vector<float> act(width), d_gate_up(2 * width), squares(2 * width), d_up(2 * width);
    kernels.swiglu_forward(a.data(), 1, width, act.data());
    kernels.swiglu_backward(a.data(), b.data(), 1, width, d_gate_up.data());
    kernels.relu2_forward(a.data(), 2 * width, squares.data());
    kernels.relu2_backward(a.data(), b.data(), 2 * width, d_up.data());
    for (int64_t i = 0; i < width; ++i) {
      const double gate = a[i], up = a[width + i], s = sigmoid(gate);
      EXPECT_NEAR(act[i], gate * s * up, 1e-5);
      EXPECT_NEAR(d_gate_up[i], b[i] * up * (s + gate * s * (1 - s)), 1e-5);
      EXPECT_NEAR(d_gate_up[width + i], b[i] * gate * s, 1e-5);
    }
    for (int64_t i = 0; i < 2 * width; ++i) {
      const double positive = std::max(a[i], 0.0F);
      EXPECT_NEAR(squares[i], positive * positive, 1e-5);
      EXPECT_NEAR(d_up[i], 2 * positive * b[i], 1e-5);
    }
  });
}

TEST_P(ElementwiseTest, SoftmaxAndItsGradient) {
  with_every_copy([&](const ElementwiseKernels& kernels) {
    std::vector<float> row = a, shifted = a;
    float maximum = 0;
    const float sum = kernels.exp_row(row.data(), 2 * width, &maximum);
    kernels.exp_shifted(shifted.data(), 2 * width, 0.5F);
    EXPECT_EQ(maximum, *std::max_element(a.begin(), a.end()));
    double truth = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      truth += std::exp(static_cast<double>(a[i]) - maximum);
      EXPECT_NEAR(row[i], std::exp(static_cast<double>(a[i]) - maximum), 1e-6);
      EXPECT_NEAR(shifted[i], std::exp(a[i] - 0.5), 1e-6 * std::exp(a[i]));
    }
    EXPECT_NEAR(sum, truth, 1e-6 * truth);
    std::vector<float> probability = a;
    kernels.softmax_backward_row(probability.data(), b.data(), 2 * width, 0.3F, 0.7F);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_NEAR(probability[i], a[i] * (b[i] - 0.3) * 0.7, 1e-5);
    }
  });
}

TEST_P(ElementwiseTest, SumsAndProducts) {
  with_every_copy([&](const ElementwiseKernels& kernels) {
    double dot = 0, squares = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      dot += static_cast<double>(a[i]) * b[i];
      squares += static_cast<double>(a[i]) * a[i];
    }
    EXPECT_NEAR(kernels.dot_product(a.data(), b.data(), 2 * width), dot, 1e-4);
    EXPECT_NEAR(kernels.sum_of_squares(a.data(), 2 * width), squares, 1e-6 * squares);
    std::vector<float> scaled = a, out(a.size()), product = a, weighted = a, sum = a;
    std::vector<float> moved = b, target = a;
    kernels.scale_row(scaled.data(), 2 * width, 3);
    kernels.scale_row_into(a.data(), 2 * width, 3, out.data());
    kernels.multiply_into(b.data(), 2 * width, product.data());
    kernels.add_scaled(b.data(), 2 * width, 3, weighted.data());
    kernels.add_into(b.data(), 2 * width, sum.data());
    kernels.move_into(moved.data(), 2 * width, target.data());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(scaled[i], 3 * a[i]);
      EXPECT_EQ(out[i], 3 * a[i]);
      EXPECT_EQ(product[i], a[i] * b[i]);
      EXPECT_NEAR(weighted[i], a[i] + 3.0 * b[i], 1e-6);
      EXPECT_EQ(sum[i], a[i] + b[i]);
      EXPECT_EQ(target[i], a[i] + b[i]);
      EXPECT_EQ(moved[i], 0);
    }
  });
}

TEST_P(ElementwiseTest, AdamW) {
  const AdamStep step{0.01F, 0.8F, 0.95F, 1e-6F, 0.3F, 0.5F, 0.36F, 0.3F};
  with_every_copy([&](const ElementwiseKernels& kernels) {
    std::vector<float> parameters = a, gradients = b, first = b, second(a.size(), 0.5F);
    kernels.adamw(parameters.data(), gradients.data(), first.data(), second.data(), 2 * width,
                  step);
    for (size_t i = 0; i < a.size(); ++i) {
      const double g = 0.5 * b[i], m = 0.8 * b[i] + 0.2 * g, v = 0.95 * 0.5 + 0.05 * g * g;
      EXPECT_EQ(gradients[i], 0);
      EXPECT_NEAR(first[i], m, 1e-6);
      EXPECT_NEAR(second[i], v, 1e-6);
      EXPECT_NEAR(parameters[i],
                  a[i] * (1 - 0.01 * 0.3) - 0.01 / 0.36 * m / (std::sqrt(v) / 0.3 + 1e-6), 1e-6);
    }
  });
}

}  // namespace
}  // namespace smalltalk
