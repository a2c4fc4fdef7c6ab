#include "read_ahead.hpp"

#include <algorithm>
#include <cstring>

namespace smalltalk {
namespace {
constexpr size_t kReadBytes = size_t{1} << 18;
}

bool ReadAhead::fill() {
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

}  // namespace smalltalk
