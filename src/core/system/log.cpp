#include "smalltalk/core/system/log.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/system/log_state.hpp"

namespace smalltalk {

void set_log_prefix(std::string prefix) { log_state().prefix = std::move(prefix); }
void set_log_muted(bool muted) { log_state().muted = muted; }

void log_info(std::string_view line) {
  if (!log_state().muted) print_line(line);
}

void log_warning(std::string_view line) {
  if (!log_state().muted) print_line("warning: " + std::string(line));
}

void log_error(std::string_view line) { print_line("error: " + std::string(line)); }

int64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);  // ru_maxrss in KiB
  return int64_t{usage.ru_maxrss} * 1024;
}

std::string human_count(double value) {
  static constexpr std::array<const char*, 9> kUnits = {"",   " k", " M", " G", " T",
                                                        " P", " E", " Z", " Y"};
  size_t unit = 0;
  // 999.5 and more would print as 1e+03 with three digits.
  while (std::abs(value) >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.3g}{}", value, kUnits[unit]);
}

std::string human_bytes(double bytes) {
  static constexpr std::array<const char*, 7> kUnits = {"B",   "KiB", "MiB", "GiB",
                                                        "TiB", "PiB", "EiB"};
  size_t unit = 0;
  while (std::abs(bytes) >= 1023.95 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

std::string human_duration(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  const int64_t whole = std::llround(seconds);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
  return fmt::format("{} d {} h", whole / 86400, whole / 3600 % 24);
}

std::string aligned(const std::vector<std::vector<std::string>>& rows, const std::string& indent) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(row.size());
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : rows) {
    text += indent;
    for (size_t c = 0; c + 1 < row.size(); ++c) {
      text += fmt::format("{:<{}}", row[c], widths[c] + 2);
    }
    text += row.back() + "\n";
  }
  return text;
}

}  // namespace smalltalk
