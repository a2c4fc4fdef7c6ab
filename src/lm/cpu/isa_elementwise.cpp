// Plain loops that the compiler vectorises. Compiled with -ffast-math (see CMakeLists.txt): no code
// here may rely on NaN or infinity.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "lm/cpu/elementwise.hpp"

namespace smalltalk::ST_ISA {
namespace {

// e^x by 2^n times a polynomial (Cephes' expf, error below 2 ulp), inlined so that loops around it
// vectorise whatever the instruction set. Results below e^-87 are about 1e-38, never zero.
inline __attribute__((always_inline)) float fast_exp(float x) {
  x = std::min(88.0F, std::max(-87.3F, x));
  const float n = std::floor(x * 1.44269504F + 0.5F);
  const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

void rms_norm_forward(const float* x, const float* weight, float eps, int64_t tokens,
                      int64_t hidden, float* out, float* rstd) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = x + t * hidden;
    float* result = out + t * hidden;
    float sum = 0;
    for (int64_t i = 0; i < hidden; ++i) sum += row[i] * row[i];
    const float scale = 1.0F / std::sqrt(sum / static_cast<float>(hidden) + eps);
    rstd[t] = scale;
    for (int64_t i = 0; i < hidden; ++i) result[i] = row[i] * scale * weight[i];
  }
}

void rms_norm_backward(const float* __restrict x, const float* __restrict weight,
                       const float* __restrict rstd, const float* __restrict d_out, int64_t tokens,
                       int64_t hidden, float* __restrict d_x, float* __restrict d_weight) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = x + t * hidden;
    const float* grad = d_out + t * hidden;
    float* result = d_x + t * hidden;
    float sum = 0;
    for (int64_t i = 0; i < hidden; ++i) sum += grad[i] * weight[i] * row[i];
    const float scale = rstd[t];
    const float back = sum * scale * scale * scale / static_cast<float>(hidden);
    for (int64_t i = 0; i < hidden; ++i) {
      d_weight[i] += grad[i] * row[i] * scale;
      result[i] += grad[i] * weight[i] * scale - row[i] * back;
    }
  }
}

void rotate_heads(float* x, int64_t stride, int64_t tokens, int64_t length, int64_t heads,
                  int64_t head_dim, const float* cosine, const float* sine, float direction) {
  const int64_t half = head_dim / 2;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* __restrict c = cosine + (t % length) * half;
    const float* __restrict s = sine + (t % length) * half;
    for (int64_t h = 0; h < heads; ++h) {
      float* __restrict low = x + t * stride + h * head_dim;
      float* __restrict high = low + half;
      for (int64_t j = 0; j < half; ++j) {
        const float a = low[j], b = high[j];
        low[j] = a * c[j] - b * s[j] * direction;
        high[j] = b * c[j] + a * s[j] * direction;
      }
    }
  }
}

void swiglu_forward(const float* gate_up, int64_t tokens, int64_t width, float* out) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* __restrict gate = gate_up + t * 2 * width;
    const float* __restrict up = gate + width;
    float* __restrict result = out + t * width;
    for (int64_t i = 0; i < width; ++i) {
      result[i] = gate[i] * up[i] / (1.0F + fast_exp(-gate[i]));
    }
  }
}

void swiglu_backward(const float* gate_up, const float* d_out, int64_t tokens, int64_t width,
                     float* d_gate_up) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* __restrict gate = gate_up + t * 2 * width;
    const float* __restrict up = gate + width;
    const float* __restrict grad = d_out + t * width;
    float* __restrict d_gate = d_gate_up + t * 2 * width;
    float* __restrict d_up = d_gate + width;
    for (int64_t i = 0; i < width; ++i) {
      const float sigmoid = 1.0F / (1.0F + fast_exp(-gate[i]));
      const float silu = gate[i] * sigmoid;
      d_gate[i] = grad[i] * up[i] * (sigmoid + silu * (1.0F - sigmoid));
      d_up[i] = grad[i] * silu;
    }
  }
}

void relu2_forward(const float* __restrict up, int64_t size, float* __restrict out) {
  for (int64_t i = 0; i < size; ++i) {
    const float positive = std::max(up[i], 0.0F);
    out[i] = positive * positive;
  }
}

void relu2_backward(const float* __restrict up, const float* __restrict d_out, int64_t size,
                    float* __restrict d_up) {
  for (int64_t i = 0; i < size; ++i) d_up[i] = 2.0F * std::max(up[i], 0.0F) * d_out[i];
}

// In lanes of our own: a plain reduction over max is not vectorised unless the compiler may assume
// that there is no NaN.
float maximum_of(const float* values, int64_t size) {
  using Lanes __attribute__((vector_size(64))) = float;
  constexpr int64_t kLanes = 16;
  float top = values[0];
  int64_t i = 0;
  if (size >= kLanes) {
    Lanes best, next;
    std::memcpy(&best, values, sizeof(best));
    for (i = kLanes; i + kLanes <= size; i += kLanes) {
      std::memcpy(&next, values + i, sizeof(next));
      best = next > best ? next : best;
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) top = std::max(top, best[lane]);
  }
  for (; i < size; ++i) top = std::max(top, values[i]);
  return top;
}

float exp_row(float* row, int64_t size, float* maximum) {
  const float top = maximum_of(row, size);
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) {
    const float e = fast_exp(row[i] - top);
    row[i] = e;
    sum += e;
  }
  *maximum = top;
  return sum;
}

void exp_shifted(float* row, int64_t size, float shift) {
  for (int64_t i = 0; i < size; ++i) row[i] = fast_exp(row[i] - shift);
}

void softmax_backward_row(float* __restrict probability, const float* __restrict d_probability,
                          int64_t size, float dot, float scale) {
  for (int64_t i = 0; i < size; ++i) probability[i] *= (d_probability[i] - dot) * scale;
}

float dot_product(const float* a, const float* b, int64_t size) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

void scale_row(float* row, int64_t size, float factor) {
  for (int64_t i = 0; i < size; ++i) row[i] *= factor;
}

void scale_row_into(const float* __restrict row, int64_t size, float factor,
                    float* __restrict out) {
  for (int64_t i = 0; i < size; ++i) out[i] = row[i] * factor;
}

void multiply_into(const float* __restrict factors, int64_t size, float* __restrict values) {
  for (int64_t i = 0; i < size; ++i) values[i] *= factors[i];
}

void add_scaled(const float* __restrict values, int64_t size, float factor, float* __restrict sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += factor * values[i];
}

void add_into(const float* __restrict values, int64_t size, float* __restrict sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += values[i];
}

void move_into(float* __restrict values, int64_t size, float* __restrict sum) {
  for (int64_t i = 0; i < size; ++i) {
    sum[i] += values[i];
    values[i] = 0;
  }
}

double sum_of_squares(const float* values, int64_t size) {
  // Blocks in float, the total in double: exact enough for any size, and vectorised.
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += 4096) {
    const int64_t end = std::min(begin + 4096, size);
    float sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += values[i] * values[i];
    total += sum;
  }
  return total;
}

void adamw(float* __restrict parameters, float* __restrict gradients, float* __restrict first,
           float* __restrict second, int64_t size, const AdamStep& step) {
  const AdamStep s = step;
  const float rate = s.lr / s.correction1;
  const float keep = 1.0F - s.lr * s.weight_decay;
  for (int64_t i = 0; i < size; ++i) {
    const float g = gradients[i] * s.gradient_scale;
    gradients[i] = 0;
    const float m = s.beta1 * first[i] + (1.0F - s.beta1) * g;
    const float v = s.beta2 * second[i] + (1.0F - s.beta2) * g * g;
    first[i] = m;
    second[i] = v;
    const float denominator = std::sqrt(v) / s.correction2_root + s.eps;
    parameters[i] = parameters[i] * keep - rate * m / denominator;
  }
}

}  // namespace

extern const ElementwiseKernels elementwise_kernels;
const ElementwiseKernels elementwise_kernels = {
    .instruction_set = ST_ISA_NAME,
    .rms_norm_forward = rms_norm_forward,
    .rms_norm_backward = rms_norm_backward,
    .rotate_heads = rotate_heads,
    .swiglu_forward = swiglu_forward,
    .swiglu_backward = swiglu_backward,
    .relu2_forward = relu2_forward,
    .relu2_backward = relu2_backward,
    .exp_row = exp_row,
    .exp_shifted = exp_shifted,
    .softmax_backward_row = softmax_backward_row,
    .dot_product = dot_product,
    .scale_row = scale_row,
    .scale_row_into = scale_row_into,
    .multiply_into = multiply_into,
    .add_scaled = add_scaled,
    .add_into = add_into,
    .move_into = move_into,
    .sum_of_squares = sum_of_squares,
    .adamw = adamw,
};

}  // namespace smalltalk::ST_ISA
