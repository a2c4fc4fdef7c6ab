// What log lines and progress bars share: there is one stderr. Private to core.
#pragma once

#include <string>
#include <string_view>

namespace smalltalk {

struct LogState {
  std::string prefix;
  bool muted = false;
  bool bar_drawn = false;  // the terminal's cursor stands behind a progress bar
};
LogState& log_state();

// One write call to stderr, so that lines of many processes do not mix.
void print_raw(std::string_view text);
// With the prefix and a line end, after wiping a progress bar.
void print_line(std::string_view line);

}  // namespace smalltalk
