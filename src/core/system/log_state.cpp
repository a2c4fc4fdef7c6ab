#include "core/system/log_state.hpp"

#include <unistd.h>

#include <cerrno>

namespace smalltalk {

LogState& log_state() {
  static LogState state;
  return state;
}

void print_raw(std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(STDERR_FILENO, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // a closed stderr must not stop a run
    text.remove_prefix(static_cast<size_t>(count));
  }
}

void print_line(std::string_view line) {
  LogState& state = log_state();
  std::string text;
  if (state.bar_drawn) text += "\r\033[K";
  state.bar_drawn = false;
  if (!state.prefix.empty()) text += "[" + state.prefix + "] ";
  text += line;
  text += '\n';
  print_raw(text);
}

}  // namespace smalltalk
