#include "lm/torch/device_peak.hpp"

#include <array>
#include <utility>

namespace smalltalk {

std::optional<double> peak_flops_per_second(std::string_view device_name) {
  // What is found first counts.
  static constexpr std::array<std::pair<std::string_view, double>, 8> kPeaks = {{
      {"H100 NVL", 835e12},
      {"H100 PCIe", 756e12},
      {"H100", 989e12},
      {"H200", 989e12},
      {"H20", 148e12},
      {"B200", 2250e12},
      {"A100", 312e12},
      {"L40S", 362e12},
  }};
  for (const auto& [name, peak] : kPeaks) {
    if (device_name.find(name) != std::string_view::npos) return peak;
  }
  return std::nullopt;
}

}  // namespace smalltalk
