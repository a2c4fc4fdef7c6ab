#include "line_reader.hpp"

#include <algorithm>
#include <cstring>

namespace smalltalk {
namespace {
constexpr size_t kReadBytes = size_t{1} << 18;
}

bool LineReader::fill() {
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (end_ > max_bytes_) refuse_bomb(file_, max_bytes_);
  const size_t needed = end_ + kReadBytes + padding_;
  if (buffer_.size() < needed) buffer_.resize(std::max(needed, buffer_.size() * 2));
  const size_t got = bytes_({buffer_.data() + end_, buffer_.size() - padding_ - end_});
  end_ += got;
  return got > 0;
}

std::optional<std::string_view> LineReader::next() {
  size_t searched = 0;
  while (true) {
    const char* start = buffer_.data() + begin_;
    const size_t size = end_ - begin_;
    const void* found =
        size > searched ? std::memchr(start + searched, '\n', size - searched) : nullptr;
    if (found != nullptr) {
      const size_t length = static_cast<size_t>(static_cast<const char*>(found) - start);
      begin_ += length + 1;
      position_ += static_cast<int64_t>(length + 1);
      return std::string_view(start, length);
    }
    searched = size;
    if (fill()) continue;
    if (end_ == begin_) return std::nullopt;
    const std::string_view last(buffer_.data() + begin_, end_ - begin_);
    begin_ = end_;
    position_ += static_cast<int64_t>(last.size());
    return last;
  }
}

}  // namespace smalltalk
