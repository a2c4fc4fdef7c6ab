// The kernels of a block on the CPU (cuda_emulation.hpp). To be included once a program.
#pragma once

#include "cuda_emulation.hpp"
// Needs what stands above.
#include "lm/torch/block_launch.hpp"

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
