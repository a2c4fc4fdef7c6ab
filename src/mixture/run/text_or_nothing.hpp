// For what only looks at a run: a file that cannot be read counts as empty.
#pragma once

#include <filesystem>
#include <string>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"

namespace smalltalk {

inline std::string text_or_nothing(const std::filesystem::path& file) {
  try {
    return read_text(file);
  } catch (const Error&) {
    return {};
  }
}

}  // namespace smalltalk
