#include <cuda_bf16.h>
#include <mma.h>

#include "lm/torch/loss_kernels.cuh"
#include "lm/torch/loss_launch.hpp"

namespace smalltalk {
namespace {

// 16 x 16 matrices on tensor cores, shared by the lanes of a warp.
struct WmmaMatrix {
  using Left = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, kLossSide, kLossSide, kLossSide,
                                      __nv_bfloat16, nvcuda::wmma::row_major>;
  using Right = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kLossSide, kLossSide, kLossSide,
                                       __nv_bfloat16, nvcuda::wmma::col_major>;
  using Sum =
      nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kLossSide, kLossSide, kLossSide, float>;

  __device__ static void clear(Sum& sum) { nvcuda::wmma::fill_fragment(sum, 0.0F); }
  // Left [row, depth], Right [column, depth].
  template <class Input>
  __device__ static void load(Input& input, const Bf16* from, int pitch) {
    nvcuda::wmma::load_matrix_sync(input, reinterpret_cast<const __nv_bfloat16*>(from), pitch);
  }
  __device__ static void multiply(const Left& left, const Right& right, Sum& sum) {
    nvcuda::wmma::mma_sync(sum, left, right, sum);
  }
  __device__ static void store(float* to, const Sum& sum, int pitch) {
    nvcuda::wmma::store_matrix_sync(to, sum, pitch, nvcuda::wmma::mem_row_major);
  }
  __device__ static Bf16 round(float value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
};

int64_t num_tiles(int64_t size) { return (size + kLossTile - 1) / kLossTile; }

// The vocabulary is split over so many blocks that a GPU has enough of them with few tokens too.
struct Parts {
  int tiles, count;
};
Parts parts_of(const LossSizes& shape) {
  constexpr int64_t kBlocks = 512;
  const int64_t tiles = num_tiles(shape.vocab), rows = num_tiles(shape.tokens);
  const int64_t part = (tiles * rows + kBlocks - 1) / kBlocks;
  const int64_t part_tiles = part < tiles ? part : tiles;
  return {static_cast<int>(part_tiles), static_cast<int>((tiles + part_tiles - 1) / part_tiles)};
}

}  // namespace

int64_t log_probs_scratch(const LossSizes& shape) {
  return 2 * shape.tokens * parts_of(shape).count;
}

void launch_log_probs(const LossSizes& shape, const uint16_t* hidden, const uint16_t* head,
                      const int64_t* targets, float* scratch, float* log_sums, float* log_probs,
                      uint8_t* greedy, CUstream_st* stream) {
  if (shape.tokens == 0) return;
  const Parts parts = parts_of(shape);
  auto* sums = reinterpret_cast<SoftmaxSum*>(scratch);
  const dim3 grid(static_cast<unsigned>(num_tiles(shape.tokens)),
                  static_cast<unsigned>(parts.count));
  softmax_sums_kernel<WmmaMatrix><<<grid, kLossThreads, 0, stream>>>(
      hidden, head, targets, shape.tokens, shape.hidden, shape.vocab, parts.tiles, sums, log_probs);
  const auto blocks = static_cast<unsigned>((shape.tokens + kLossThreads - 1) / kLossThreads);
  combine_sums_kernel<<<blocks, kLossThreads, 0, stream>>>(sums, shape.tokens, parts.count,
                                                           log_sums, log_probs, greedy);
}

void launch_d_logits(const LossSizes& shape, const uint16_t* hidden, const uint16_t* head,
                     const int64_t* targets, const float* log_sums, float scale, int64_t begin,
                     int64_t width, uint16_t* d_logits, CUstream_st* stream) {
  if (shape.tokens == 0) return;
  const dim3 grid(static_cast<unsigned>(num_tiles(shape.tokens)),
                  static_cast<unsigned>(num_tiles(width)));
  d_logits_kernel<WmmaMatrix>
      <<<grid, kLossThreads, 0, stream>>>(hidden, head, targets, log_sums, shape.tokens,
                                          shape.hidden, shape.vocab, scale, begin, width, d_logits);
}

}  // namespace smalltalk
