#include "json_value_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// Whether a value that is neither text nor in brackets ends before this.
bool ends_word(char c) { return is_space(c) || c == ',' || c == ']' || c == '}'; }

}  // namespace

void JsonValueReader::fail(const std::string& problem, int64_t line) const {
  throw Error(fmt::format("{}:{}: {}", bytes_.file().string(), line, problem));
}

bool JsonValueReader::find_value() {
  while (true) {
    if (bytes_.ahead().empty() && !bytes_.fill()) break;
    const char c = bytes_.ahead()[0];
    if (is_space(c) || c == ',') {
      next_line_ += c == '\n' ? 1 : 0;
    } else if (bytes_.ahead().starts_with(kByteOrderMark)) {
      ++marks_;
      bytes_.take(kByteOrderMark.size() - 1);
    } else if (c == '[' && !in_array_) {
      in_array_ = true;
      array_line_ = next_line_;
    } else if (c == ']' && in_array_) {
      in_array_ = false;
    } else if (c == ']' || c == '}') {
      fail(fmt::format("a '{}' that closes nothing", c), next_line_);
    } else {
      return true;
    }
    bytes_.take(1);
  }
  if (in_array_) fail("the file ends in the array that begins here", array_line_);
  return false;
}

size_t JsonValueReader::size_of_value() {
  const char first = bytes_.ahead()[0];
  const bool is_word = first != '{' && first != '[' && first != '"';
  int depth = 0;
  bool in_text = false, escaped = false;
  for (size_t at = 0;; ++at) {
    if (at == bytes_.ahead().size() && !bytes_.fill()) {
      if (is_word) return at;
      fail("the file ends in the value that begins here", next_line_);
    }
    const char c = bytes_.ahead()[at];
    if (is_word) {
      if (ends_word(c)) return at;
    } else if (in_text) {
      in_text = escaped || c != '"';
      escaped = !escaped && c == '\\';
      if (!in_text && depth == 0) return at + 1;
    } else if (c == '"') {
      in_text = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (--depth == 0) return at + 1;
    }
  }
}

std::optional<std::string_view> JsonValueReader::next() {
  if (!find_value()) return std::nullopt;
  const size_t size = size_of_value();
  const std::string_view value = bytes_.ahead().substr(0, size);
  line_ = next_line_;
  next_line_ += std::ranges::count(value, '\n');
  bytes_.take(size);
  return value;
}

}  // namespace smalltalk
