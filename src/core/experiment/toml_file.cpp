#define TOML_IMPLEMENTATION  // the others include its declarations alone
#include "core/experiment/toml_file.hpp"

#include <fmt/format.h>

#include <sstream>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"

namespace smalltalk {
namespace {

constexpr size_t kMaxBytes = 1 << 16;
constexpr int kMaxDots = 100;

// toml++ recurses once for each part of a.a.a.a..., which may overflow the stack. Dots inside of
// strings are those of paths.
void refuse_deep_keys(std::string_view text, const std::string& file) {
  int line = 1;
  int dots = 0;
  char quote = 0;
  for (const char c : text) {
    if (c == '\n') {
      ++line;
      dots = 0;
      quote = 0;
    } else if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '.' && ++dots > kMaxDots) {
      throw Error(fmt::format("{}:{}: more than {} dots outside of strings", file, line, kMaxDots));
    }
  }
}

}  // namespace

std::string explain_toml(const toml::parse_error& error) {
  return fmt::format("{}, column {}", printable(error.description()), error.source().begin.column);
}

toml::table read_toml(const std::filesystem::path& file) {
  const std::string name = file.string();
  const std::string text = read_text(file);
  if (text.size() > kMaxBytes) {
    throw Error(fmt::format("{}: is larger than {} bytes, and so no experiment", name, kMaxBytes));
  }
  refuse_deep_keys(text, name);
  try {
    return toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    throw Error(fmt::format("{}:{}: {}", name, error.source().begin.line, explain_toml(error)));
  }
}

}  // namespace smalltalk
