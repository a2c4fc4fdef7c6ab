#include "smalltalk/core/system/error.hpp"

#include "smalltalk/core/system/utf8.hpp"

namespace smalltalk {

std::string printable(std::string_view text) {
  constexpr size_t kMaxBytes = 200;
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string shown;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (shown.size() >= kMaxBytes && !continues_character(c)) return shown + "...";
    if (byte >= 0x20 && byte != 0x7F) {
      shown += c;
    } else {
      shown += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
    if (shown.size() >= kMaxBytes + 4) return shown + "...";  // no UTF-8
  }
  return shown;
}

}  // namespace smalltalk
