// The CUDA kernels of the fused projection and cross-entropy, run on the CPU, against float64.
#include "cuda_emulation.hpp"
// The kernels need what stands above.
#include "lm/torch/loss_kernels.cuh"
#include "loss_reference.hpp"

namespace smalltalk {
namespace {

std::vector<Bf16> to_bf16(const std::vector<float>& values) {
  std::vector<Bf16> result;
  for (const float value : values) result.push_back(emulation::to_bf16(value));
  return result;
}

// What bfloat16 leaves of the values, so that only the kernels' own rounding is judged.
LossCase rounded_case(LossShape shape, float spread) {
  LossCase c = random_loss_case(shape, spread);
  for (std::vector<float>* values : {&c.hidden, &c.head}) {
    for (float& value : *values) value = emulation::from_bf16(emulation::to_bf16(value));
  }
  return c;
}

// The vector begins on a 16-byte boundary, as device memory does.
const Bf16* aligned(const std::vector<Bf16>& values) {
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= alignof(LossPack));
  return values.data();
}

unsigned num_tiles(int64_t size) {
  return static_cast<unsigned>((size + kLossTile - 1) / kLossTile);
}

struct KernelCase {
  LossShape shape;
  float spread;
  int part_tiles;  // of the vocabulary, for one block
};

class LossKernelsTest : public testing::TestWithParam<std::tuple<KernelCase, bool>> {
 protected:
  // log_sums, log_probs and greedy as launch_log_probs computes them.
  void run_forward(const LossCase& c, int part_tiles, bool reverse) {
    const auto [T, H, V] = c.shape;
    const int parts = static_cast<int>((num_tiles(V) + part_tiles - 1) / part_tiles);
    std::vector<SoftmaxSum> sums(static_cast<size_t>(parts * T));
    log_sums.assign(static_cast<size_t>(T), 0);
    log_probs = log_sums;
    greedy.assign(log_sums.size(), 0);
    emulation::launch({num_tiles(T), static_cast<unsigned>(parts)}, kLossThreads, reverse, [&] {
      softmax_sums_kernel<emulation::Matrix>(aligned(hidden), aligned(head), c.targets.data(), T, H,
                                             V, part_tiles, sums.data(), log_probs.data());
    });
    emulation::launch({num_tiles(T), 1}, kLossTile, reverse, [&] {
      combine_sums_kernel(sums.data(), T, parts, log_sums.data(), log_probs.data(), greedy.data());
    });
  }

  std::vector<Bf16> hidden, head;
  std::vector<float> log_sums, log_probs;
  std::vector<uint8_t> greedy;
};

TEST_P(LossKernelsTest, AgreesWithFloat64) {
  const auto& [kernel_case, reverse] = GetParam();
  const LossCase c = rounded_case(kernel_case.shape, kernel_case.spread);
  const auto [T, H, V] = c.shape;
  const float scale = 1.0F / static_cast<float>(T);
  const LossReference r = loss_reference(c, scale);
  hidden = to_bf16(c.hidden);
  head = to_bf16(c.head);
  run_forward(c, kernel_case.part_tiles, reverse);
  expect_near(log_probs, r.log_probs, 1e-5);
  EXPECT_EQ(std::vector<float>(greedy.begin(), greedy.end()), r.greedy);

  // Two chunks of the vocabulary; the products that cuBLAS does are done in float64.
  std::vector<double> d_hidden(c.hidden.size()), d_head(c.head.size());
  const int64_t chunk = V > kLossTile ? kLossTile : V;
  for (int64_t begin = 0; begin < V; begin += chunk) {
    const int64_t width = std::min(chunk, V - begin);
    std::vector<Bf16> d_logits(static_cast<size_t>(T * width));
    emulation::launch({num_tiles(T), num_tiles(width)}, kLossThreads, reverse, [&] {
      d_logits_kernel<emulation::Matrix>(aligned(hidden), aligned(head), c.targets.data(),
                                         log_sums.data(), T, H, V, scale, begin, width,
                                         d_logits.data());
    });
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t v = 0; v < width; ++v) {
        const double d = emulation::from_bf16(d_logits[t * width + v]);
        for (int64_t i = 0; i < H; ++i) {
          d_hidden[t * H + i] += d * c.head[(begin + v) * H + i];
          d_head[(begin + v) * H + i] += d * c.hidden[t * H + i];
        }
      }
    }
  }
  // d_logits are rounded to 8 bits.
  expect_near({d_hidden.begin(), d_hidden.end()}, r.d_hidden, 4e-3);
  expect_near({d_head.begin(), d_head.end()}, r.d_head, 4e-3);
}

// Tokens, hidden size and vocabulary below, at and above the tiles; rows that are not aligned;
// blocks with several tiles of words; logits of a few hundred. Each with both orders of threads.
INSTANTIATE_TEST_SUITE_P(Shapes, LossKernelsTest,
                         testing::Combine(testing::Values(KernelCase{{5, 8, 2}, 1.0F, 1},
                                                          KernelCase{{128, 32, 128}, 0.5F, 1},
                                                          KernelCase{{129, 33, 300}, 0.5F, 2},
                                                          KernelCase{{100, 72, 257}, 0.5F, 1},
                                                          KernelCase{{3, 100, 400}, 0.5F, 4},
                                                          KernelCase{{130, 16, 130}, 8.0F, 1}),
                                          testing::Bool()));

}  // namespace
}  // namespace smalltalk
