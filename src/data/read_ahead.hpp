// A byte stream through a window that grows with what is looked at. Private to src/data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "byte_reader.hpp"

namespace smalltalk {

class ReadAhead {
 public:
  // At least `padding` readable bytes follow what lies ahead, as simdjson wants them. Errors name
  // `file`.
  ReadAhead(ByteReader bytes, const std::filesystem::path& file, size_t padding)
      : bytes_(std::move(bytes)),
        file_(file),
        max_bytes_(max_document_bytes(file)),
        padding_(padding) {}

  // What was read and not taken, valid until fill().
  std::string_view ahead() const { return {buffer_.data() + begin_, end_ - begin_}; }
  // Reads more behind it; false at the end of the stream. Error: more than max_document_bytes().
  bool fill();
  void take(size_t bytes) {
    begin_ += bytes;
    position_ += static_cast<int64_t>(bytes);
  }
  int64_t position() const { return position_; }  // bytes taken so far

  const std::filesystem::path& file() const { return file_; }

 private:
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
