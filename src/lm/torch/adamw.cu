#include "lm/torch/adamw_launch.hpp"

namespace smalltalk {
namespace {

__global__ void adamw_kernel(float* parameters, const float* gradients, float* first, float* second,
                             int64_t size, AdamStep s) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += stride) {
    const float g = gradients[i] * s.gradient_scale;
    const float m = s.beta1 * first[i] + (1.0F - s.beta1) * g;
    const float v = s.beta2 * second[i] + (1.0F - s.beta2) * g * g;
    first[i] = m;
    second[i] = v;
    const float denominator = sqrtf(v) / s.correction2_root + s.eps;
    parameters[i] =
        parameters[i] * (1.0F - s.lr * s.weight_decay) - s.lr / s.correction1 * m / denominator;
  }
}

}  // namespace

void launch_adamw(float* parameters, const float* gradients, float* first, float* second,
                  int64_t size, const AdamStep& step, CUstream_st* stream) {
  if (size == 0) return;
  constexpr int kThreads = 256;
  constexpr int64_t kMaxBlocks = 4096;  // the loop above takes the rest
  const int64_t blocks = (size + kThreads - 1) / kThreads;
  const auto grid = static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  adamw_kernel<<<grid, kThreads, 0, stream>>>(parameters, gradients, first, second, size, step);
}

}  // namespace smalltalk
