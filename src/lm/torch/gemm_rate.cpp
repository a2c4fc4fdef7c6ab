#include "lm/torch/gemm_rate.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "lm/cpu/gemm.hpp"
#include "lm/cpu/thread_team.hpp"
#include "lm/torch/device.hpp"
#include "lm/torch/device_peak.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {

namespace {

// Of the products of one size that fit into `seconds`, at least one, the fastest. The mean would
// be the rate of a core that is shared: other ranks measure at the same time, or wait for this one.
double best_seconds(int64_t size, double seconds, const at::TensorOptions& options) {
  // Not of ones, which take less power than numbers do, so that a GPU would be faster.
  const auto in_float = options.dtype(at::kFloat);
  const at::Tensor a = at::randn({size, size}, in_float).to(options),
                   b = at::randn({size, size}, in_float).to(options);
  at::Tensor c = at::empty({size, size}, options);
  const auto product = [&] {
    at::mm_out(c, a, b);
    if (c.is_cuda()) c[0][0].item();  // waits for the device
  };
  product();
  double best = std::numeric_limits<double>::infinity();
  const double end = now_seconds() + seconds;
  do {
    const double start = now_seconds();
    product();
    best = std::min(best, now_seconds() - start);
  } while (now_seconds() < end);
  return best;
}

// Of products by the CPU engine's kernels, one for each thread at a time.
double engine_rate(double seconds, int threads) {
  constexpr int64_t kSize = 512;  // done before the scheduler gives the core to another process
  ThreadTeam team(threads);
  std::vector<std::vector<float>> matrices(static_cast<size_t>(threads));
  for (auto& each : matrices) each.assign(3 * kSize * kSize, 0.5F);
  double best = std::numeric_limits<double>::infinity();
  const double end = now_seconds() + seconds;
  do {
    const double start = now_seconds();
    team.run([&](int thread) {
      float* const at = matrices[static_cast<size_t>(thread)].data();
      gemm_nn(kSize, kSize, kSize, 1, {at, kSize}, {at + kSize * kSize, kSize}, false,
              {at + 2 * kSize * kSize, kSize});
    });
    best = std::min(best, now_seconds() - start);
  } while (now_seconds() < end);
  return 2.0 * threads * kSize * kSize * kSize / best;
}

}  // namespace

double measure_gemm_rate(double seconds, const DeviceConfig& device) {
  const bool cuda = device.device == "cuda";
  const auto type = device.precision == "bf16-mixed" ? at::kBFloat16 : at::kFloat;
  const auto options = at::device(cuda ? at::kCUDA : at::kCPU).dtype(type);
  const int threads_before = at::get_num_threads();
  at::set_num_threads(cuda ? 1 : static_cast<int>(device.threads));
  // On the CPU so small that a product is done before the scheduler gives the core to another
  // process, which is after some milliseconds, and no smaller: many threads need more to do.
  constexpr double kSlice = 2e-3;
  double best_rate = 0, left = cuda ? seconds : seconds * 3 / 4;
  for (int64_t size = cuda ? 8192 : 512;; size *= 2) {
    const double start = now_seconds();
    const double best = best_seconds(size, left / 2, options);
    const auto extent = static_cast<double>(size);
    best_rate = std::max(best_rate, 2 * extent * extent * extent / best);
    left -= now_seconds() - start;
    if (cuda || 8 * best > kSlice || left <= 0) break;
  }
  at::set_num_threads(threads_before);
  if (cuda) return best_rate;
  return std::max(best_rate, engine_rate(seconds / 4, static_cast<int>(device.threads)));
}

double device_flops_per_second(const DeviceConfig& device) {
  if (device.flops_per_second > 0) return device.flops_per_second;
  constexpr double kSeconds = 0.2;
  static std::mutex mutex;
  static std::map<std::tuple<std::string, std::string, int64_t>, double> rates;
  const std::lock_guard lock(mutex);
  const auto [found, missing] =
      rates.try_emplace({device.device, device.precision, device.threads});
  if (!missing) return found->second;
  const bool cuda = device.device == "cuda", bf16 = device.precision == "bf16-mixed";
  const std::string name = cuda ? cuda_device().name() : "";
  const auto peak = cuda && bf16 ? peak_flops_per_second(name) : std::nullopt;
  found->second = peak ? *peak : measure_gemm_rate(kSeconds, device);
  if (cuda) {
    log_info(fmt::format("MFU is the share of {:.0f} TFLOP/s, {} of {}", found->second / 1e12,
                         peak ? "the bfloat16 peak" : "the measured rate of a large product",
                         name));
  }
  return found->second;
}

}  // namespace smalltalk
