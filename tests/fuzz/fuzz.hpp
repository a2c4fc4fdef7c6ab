// What the fuzzers share: the input as files, and what readers owe to any file: a result or an
// Error that names it. Anything else leaves the fuzzer, which keeps the input.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/core/system/error.hpp"
#include "support/temporary_folder.hpp"
#include "support/write_bytes.hpp"

namespace smalltalk::fuzz {

// Removed when the fuzzer ends; after a finding, by ci/fuzz.sh.
inline const std::filesystem::path& folder() {
  static const TemporaryFolder made;
  return made.path();
}

inline std::filesystem::path write_file(const std::string& name, std::string_view bytes) {
  return write_bytes(folder() / name, bytes);
}

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// The parts between NULs; the last takes what is left.
inline std::vector<std::string_view> split(std::string_view text, size_t max_parts) {
  std::vector<std::string_view> parts;
  while (parts.size() + 1 < max_parts) {
    const size_t at = text.find('\0');
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at + 1);
  }
  parts.push_back(text);
  return parts;
}

inline void require(bool good, const std::string& what) {
  if (good) return;
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

// Whether there was a result.
inline bool result_or_error(const std::string& named, const std::function<void()>& read) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    const std::string text = error.what();
    require(text.find(named) != std::string::npos, "the error does not say " + named + ": " + text);
    require(!text.starts_with("internal error"), text);
    require(text.size() < 4096, "an error of " + std::to_string(text.size()) + " bytes");
    return false;
  }
}

}  // namespace smalltalk::fuzz
