// Lines of a byte stream. Private to src/data.
#pragma once

#include <optional>
#include <string_view>

#include "read_ahead.hpp"

namespace smalltalk {

class LineReader {
 public:
  explicit LineReader(ReadAhead bytes) : bytes_(std::move(bytes)) {}

  // The next line without its end, valid until the next call; nothing at the end. A last line
  // without a line end counts; the window grows with the longest line.
  std::optional<std::string_view> next();

  // Bytes taken so far: where the next line begins.
  int64_t position() const { return bytes_.position(); }

 private:
  ReadAhead bytes_;
};

}  // namespace smalltalk
