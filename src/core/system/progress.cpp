#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/system/log_state.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

constexpr double kTerminalSeconds = 0.1;
constexpr double kLogFileSeconds = 5;
constexpr int kBarWidth = 20;

size_t terminal_width() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string draw_bar(double share) {
  const int filled = static_cast<int>(std::clamp(share, 0.0, 1.0) * kBarWidth);
  return "[" + std::string(static_cast<size_t>(filled), '#') +
         std::string(static_cast<size_t>(kBarWidth - filled), '.') + "] ";
}

}  // namespace

Progress::Progress(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      start_(now_seconds()),
      last_print_(start_),
      terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  try {
    print(true);
  } catch (...) {  // out of memory for a line of text: the work goes on
  }
}

void Progress::update(int64_t done, std::string_view note) {
  // A resumed run starts in the middle: what was done before does not count for the rate.
  if (first_done_ < 0) {
    first_done_ = done;
    first_time_ = now_seconds();
  }
  done_ = done;
  note_ = note;
  const double now = now_seconds();
  if (now - last_print_ < (terminal_ ? kTerminalSeconds : kLogFileSeconds)) return;
  last_print_ = now;
  print(false);
}

void Progress::print(bool last) {
  if (log_state().muted) return;
  const double now = now_seconds();
  const double share = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1.0;
  double rate = 0;
  if (done_ > first_done_ && first_done_ >= 0 && now > first_time_) {
    rate = static_cast<double>(done_ - first_done_) / (now - first_time_);
  } else if (now > start_) {
    rate = static_cast<double>(done_) / (now - start_);
  }
  const std::string count = human_count(static_cast<double>(done_));
  const std::string total = human_count(static_cast<double>(total_));
  std::string text = label_;
  if (last && done_ >= total_) {
    text += fmt::format(": {} {} in {}", count, unit_, human_duration(now - start_));
  } else if (last) {
    text += fmt::format(": stopped at {} of {} {} after {}", count, total, unit_,
                        human_duration(now - start_));
  } else {
    text += ": ";
    if (terminal_) text += draw_bar(share);
    text += fmt::format("{:.0f} % ({} of {} {})", 100 * share, count, total, unit_);
  }
  if (rate > 0) {
    text += fmt::format(", {} {}/s", human_count(rate), unit_);
    const auto left = static_cast<double>(total_ - done_);
    if (!last && left > 0) text += fmt::format(", {} left", human_duration(left / rate));
  }
  if (!note_.empty()) text += ", " + note_;
  if (last || !terminal_) {
    print_line(text);
    return;
  }
  if (!log_state().prefix.empty()) text = "[" + log_state().prefix + "] " + text;
  // A bar that wraps could not be drawn over.
  text.resize(std::min(text.size(), terminal_width() - 1));
  print_raw("\r" + text + "\033[K");
  log_state().bar_drawn = true;
}

}  // namespace smalltalk
