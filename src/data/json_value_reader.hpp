// JSON values of a byte stream, one behind another or in an array, over any number of lines, as jq
// reads and writes them. Private to src/data.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "read_ahead.hpp"

namespace smalltalk {

class JsonValueReader {
 public:
  explicit JsonValueReader(ReadAhead bytes) : bytes_(std::move(bytes)) {}

  // The next value, valid until the next call; nothing at the end. Whether it is JSON is left to
  // others: here brackets are counted. Of an array on the outside the elements are the values.
  // Error, by file and line: a bracket that closes nothing, or an end of the stream in a value or
  // array, behind which nobody could tell what belongs where.
  std::optional<std::string_view> next();

  int64_t line() const { return line_; }    // where the newest value begins, counted from 1
  int64_t marks() const { return marks_; }  // byte order marks between values so far

 private:
  // What lies ahead begins with a value; false: the stream ends before.
  bool find_value();
  // How many bytes of what lies ahead it has.
  size_t size_of_value();
  [[noreturn]] void fail(const std::string& problem, int64_t line) const;

  ReadAhead bytes_;
  bool in_array_ = false;
  int64_t marks_ = 0;
  int64_t line_ = 1;
  int64_t next_line_ = 1;   // of what lies ahead
  int64_t array_line_ = 0;  // where the array began
};

}  // namespace smalltalk
