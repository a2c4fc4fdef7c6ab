// TOML files, read with what its library lacks: limits.
#pragma once

#include <filesystem>
#include <string>

// toml++ 3.3 asserts that a key begins as one before it looks, and with NDEBUG lets clang assume
// it. "[{" does not, and is refused right after.
#undef NDEBUG
#define TOML_ASSERT(condition) static_assert(true)
#define TOML_HEADER_ONLY 0
#include <toml++/toml.h>

namespace smalltalk {

// Error naming the file, and the line of what is not TOML: not readable, larger than 64 KiB, keys
// of more than 100 parts.
toml::table read_toml(const std::filesystem::path& file);

// What is wrong, and in which column.
std::string explain_toml(const toml::parse_error& error);

}  // namespace smalltalk
