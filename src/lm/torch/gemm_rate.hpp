// How fast this process multiplies matrices: what the speed of a model is held against.
#pragma once

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// FLOPs per second of a large product through LibTorch, the fastest of those that fit into about
// `seconds`, in the precision of the device. On the CPU on device.threads threads, or of the
// engine's own products where they are faster.
double measure_gemm_rate(double seconds, const DeviceConfig& device);

// device.flops_per_second, or, if that is 0, a GPU's peak in bfloat16 (device_peak.hpp), or else
// the rate measured when first asked for. On a GPU a line of log says which.
double device_flops_per_second(const DeviceConfig& device);

}  // namespace smalltalk
