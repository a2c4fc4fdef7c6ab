// The kernels on the CPU (cuda_emulation.hpp).
#pragma once

#include "cuda_emulation.hpp"
// Needs what stands above.
#include "lm/torch/block_launch.hpp"
#include "lm/torch/update_launch.hpp"

namespace smalltalk {

inline bool reverse_threads = false;  // the last thread of a block runs first

inline uint16_t round_to_bf16(float value) { return emulation::to_bf16(value); }

template <class... Parameters, class... Arguments>
void launch(const LaunchGrid& grid, CUstream_st* /*stream*/, void (*kernel)(Parameters...),
            Arguments... arguments) {
  emulation::launch({static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)}, kBlockThreads,
                    reverse_threads, [&] { kernel(arguments...); });
}

}  // namespace smalltalk

#include "lm/torch/block_kernels.cuh"
#include "lm/torch/update_kernels.cuh"
