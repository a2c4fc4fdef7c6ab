#include <cuda_bf16.h>

#include <type_traits>

#include "lm/torch/block_launch.hpp"
#include "lm/torch/update_launch.hpp"

namespace smalltalk {
namespace {

__device__ inline unsigned short round_to_bf16(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

template <class... Parameters, class... Arguments>
void launch(const LaunchGrid& grid, CUstream_st* stream, void (*kernel)(Parameters...),
            Arguments... arguments) {
  if (grid.x == 0) return;
  kernel<<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)), kBlockThreads, 0,
           stream>>>(arguments...);
}

}  // namespace
}  // namespace smalltalk

#include "lm/torch/block_kernels.cuh"
#include "lm/torch/update_kernels.cuh"

namespace smalltalk {

const BlockKernels& cuda_block_kernels() { return kBlockKernels; }
const UpdateKernels& cuda_update_kernels() { return kUpdateKernels; }

}  // namespace smalltalk
