// What GPUs can do at best.
#pragma once

#include <optional>
#include <string_view>

namespace smalltalk {

// FLOPs per second of dense bfloat16 products with float32 sums, by the makers' data sheets (as
// torchtitan has them); nothing for a device that is not in the table. Names are those that drivers
// give, as "NVIDIA H100 80GB HBM3".
std::optional<double> peak_flops_per_second(std::string_view device_name);

}  // namespace smalltalk
