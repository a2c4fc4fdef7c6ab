// How many segments' merged matrices exist at a time on a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lm/model/parameter_layout.hpp"

namespace smalltalk {

// 512 MiB in bfloat16; more segments would make the products no faster.
inline int64_t segments_at_once(const ModelConfig& config) {
  constexpr int64_t kMergedNumbers = int64_t{1} << 28, kMost = 16;
  return std::clamp<int64_t>(kMergedNumbers / (gate_up_width(config) * config.hidden_size), 1,
                             kMost);
}

}  // namespace smalltalk
