#include "line_reader.hpp"

namespace smalltalk {

std::optional<std::string_view> LineReader::next() {
  size_t searched = 0;
  while (true) {
    const std::string_view ahead = bytes_.ahead();
    const size_t end = ahead.find('\n', searched);
    if (end != std::string_view::npos) {
      bytes_.take(end + 1);
      return ahead.substr(0, end);
    }
    searched = ahead.size();
    if (bytes_.fill()) continue;
    const std::string_view last = bytes_.ahead();
    if (last.empty()) return std::nullopt;
    bytes_.take(last.size());
    return last;
  }
}

}  // namespace smalltalk
