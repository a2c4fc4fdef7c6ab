// Runs the blocks of a CUDA kernel on the CPU, as far as block_kernels.cuh needs: the threads of a
// block are fibers that yield at barriers only. To be included before the kernels.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__ inline
#define __device__
#define __launch_bounds__(threads, blocks)
// Blocks run one after another, so one copy does.
#define __shared__ static

namespace emulation {

struct Index {
  unsigned x = 0, y = 0;
};

struct Fiber {
  ucontext_t context{};
  std::vector<char> stack;
  bool finished = false;
};

// The threads that meet at a barrier.
struct Barrier {
  int size = 0, arrived = 0;
  int64_t generation = 0;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* current = nullptr;
inline std::function<void()> body;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
inline std::vector<float> exchanged;
inline bool progress = false;

inline void wait(Barrier& barrier) {
  const int64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    progress = true;
    return;
  }
  while (barrier.generation == generation) swapcontext(&current->context, &scheduler);
}

inline void fiber_main() {
  body();
  current->finished = true;
  progress = true;
}

}  // namespace emulation

inline emulation::Index threadIdx, blockIdx, blockDim;

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float rsqrtf(float value) { return 1 / std::sqrt(value); }

inline void __syncthreads() {
  const unsigned thread = threadIdx.x;
  emulation::wait(emulation::block_barrier);
  threadIdx.x = thread;
}

inline void __syncwarp() {
  const unsigned thread = threadIdx.x;
  emulation::wait(emulation::warp_barriers[thread / 32]);
  threadIdx.x = thread;
}

inline float __shfl_xor_sync(unsigned /*mask*/, float value, unsigned lanes) {
  emulation::exchanged[threadIdx.x] = value;
  __syncwarp();
  const float other = emulation::exchanged[threadIdx.x ^ lanes];
  __syncwarp();
  return other;
}

namespace emulation {

// Runs kernel() for every thread of every block. `reverse` lets the last thread run first: where a
// barrier is missing, the two orders give different results.
inline void launch(Index grid, unsigned threads, bool reverse, std::function<void()> kernel) {
  constexpr size_t kStackBytes = 64 << 10;
  body = std::move(kernel);
  blockDim = {threads, 1};
  fibers.resize(threads);
  exchanged.assign(threads, 0);
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
      block_barrier = {static_cast<int>(threads)};
      warp_barriers.assign((threads + 31) / 32, {32});
      for (Fiber& fiber : fibers) {
        fiber.finished = false;
        fiber.stack.resize(kStackBytes);
        getcontext(&fiber.context);
        fiber.context.uc_stack = {fiber.stack.data(), 0, kStackBytes};
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, fiber_main, 0);
      }
      do {
        progress = false;
        for (unsigned i = 0; i < threads; ++i) {
          const unsigned thread = reverse ? threads - 1 - i : i;
          current = &fibers[thread];
          if (current->finished) continue;
          threadIdx.x = thread;
          swapcontext(&scheduler, &current->context);
        }
        const bool done = std::ranges::all_of(fibers, [](const Fiber& f) { return f.finished; });
        if (done) break;
        if (!progress) throw std::logic_error("threads of a block wait at different barriers");
      } while (true);
    }
  }
}

inline float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t to_bf16(float value) {  // to the nearest, ties to even; no NaN
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace emulation
