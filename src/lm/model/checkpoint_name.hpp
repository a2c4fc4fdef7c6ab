// What the checkpoints of a model are called: step-00000040.safetensors.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace smalltalk {

inline constexpr std::string_view kCheckpointPrefix = "step-", kCheckpointEnding = ".safetensors";

inline std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08}{}", kCheckpointPrefix, step, kCheckpointEnding);
}

}  // namespace smalltalk
