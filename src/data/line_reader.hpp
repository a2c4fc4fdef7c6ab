// Lines of a byte stream. Private to src/data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "byte_reader.hpp"

namespace smalltalk {

class LineReader {
 public:
  // At least `padding` readable bytes follow each line, as simdjson wants them. Errors name `file`.
  LineReader(ByteReader bytes, const std::filesystem::path& file, size_t padding)
      : bytes_(std::move(bytes)),
        file_(file),
        max_bytes_(max_document_bytes(file)),
        padding_(padding) {}

  // The next line without its end, valid until the next call; nothing at the end. A last line
  // without a line end counts; the buffer grows with the longest line. Error: longer than
  // max_document_bytes().
  std::optional<std::string_view> next();

  // Bytes taken so far: where the next line begins.
  int64_t position() const { return position_; }

 private:
  bool fill();  // reads more behind end_; false at the end of the stream

  ByteReader bytes_;
  std::filesystem::path file_;
  size_t max_bytes_;
  size_t padding_;
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  int64_t position_ = 0;
};

}  // namespace smalltalk
