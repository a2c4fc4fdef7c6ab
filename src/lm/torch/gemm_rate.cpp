#include "lm/torch/gemm_rate.hpp"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "smalltalk/core/system/clock.hpp"

namespace smalltalk {

double measure_gemm_rate(double seconds, const DeviceConfig& device) {
  const bool cuda = device.device == "cuda";
  const int64_t size = cuda ? 8192 : 1024;
  const auto type = device.precision == "bf16-mixed" ? at::kBFloat16 : at::kFloat;
  const auto options = at::device(cuda ? at::kCUDA : at::kCPU).dtype(type);
  const int threads_before = at::get_num_threads();
  at::set_num_threads(cuda ? 1 : static_cast<int>(device.threads));
  const at::Tensor a = at::ones({size, size}, options), b = at::ones({size, size}, options);
  at::Tensor c = at::empty({size, size}, options);
  const auto product = [&] {
    at::mm_out(c, a, b);
    if (cuda) c[0][0].item();  // waits for the device
  };
  product();
  const auto extent = static_cast<double>(size);
  const double start = now_seconds();
  double products = 0;
  do {
    product();
    ++products;
  } while (now_seconds() - start < seconds);
  const double elapsed = now_seconds() - start;
  at::set_num_threads(threads_before);
  return 2 * extent * extent * extent * products / elapsed;
}

double device_flops_per_second(const DeviceConfig& device) {
  if (device.flops_per_second > 0) return device.flops_per_second;
  constexpr double kSeconds = 0.2;
  static std::mutex mutex;
  static std::map<std::tuple<std::string, std::string, int64_t>, double> rates;
  const std::lock_guard lock(mutex);
  const auto [found, missing] =
      rates.try_emplace({device.device, device.precision, device.threads});
  if (missing) found->second = measure_gemm_rate(kSeconds, device);
  return found->second;
}

}  // namespace smalltalk
