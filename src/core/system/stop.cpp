#include "smalltalk/core/system/stop.hpp"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cctype>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <utility>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

constexpr double kSecondsBetweenLooks = 2;

volatile std::sig_atomic_t caught_signal = 0;
std::atomic<double> last_poll = now_seconds();

extern "C" void note_signal(int number) { caught_signal = number; }

struct State {
  std::mutex mutex;
  StopSources sources;
  std::optional<fs::file_time_type> file_time;  // of the stop file when we began
  double last_look = 0;
  std::string reason;
};
State& state() {
  static State instance;
  return instance;
}

constexpr std::array<std::pair<const char*, int>, 6> kSignals = {{{"USR1", SIGUSR1},
                                                                  {"USR2", SIGUSR2},
                                                                  {"TERM", SIGTERM},
                                                                  {"INT", SIGINT},
                                                                  {"HUP", SIGHUP},
                                                                  {"CONT", SIGCONT}}};

std::string signal_name(int number) {
  for (const auto& [name, value] : kSignals) {
    if (value == number) return std::string("SIG") + name;
  }
  return fmt::format("signal {}", number);
}

std::optional<fs::file_time_type> time_of(const fs::path& file) {
  std::error_code error;
  const auto time = fs::last_write_time(file, error);
  if (file.empty() || error) return std::nullopt;
  return time;
}

std::string look_for_reason(const State& s) {
  const auto file_time = time_of(s.sources.file);
  if (file_time && file_time != s.file_time) return s.sources.file.string();
  std::error_code ignored;
  if (!s.sources.bell.empty() && fs::exists(s.sources.bell, ignored)) return "another rank";
  return {};
}

// The other ranks learn it from the file. Without it they stop for the same reason themselves, or
// when this rank tells them at the end of their common work.
void ring(const fs::path& bell, const std::string& reason) {
  if (bell.empty()) return;
  try {
    claim(bell, reason);
  } catch (const Error& error) {
    log_warning(error.what());
  }
}

}  // namespace

void catch_stop_signals(std::span<const int> signals) {
  struct sigaction action = {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESTART;
  for (const int number : signals) sigaction(number, &action, nullptr);
}

std::vector<int> parse_signals(const std::string& names) {
  std::vector<int> signals;
  std::istringstream words(names);
  for (std::string word; std::getline(words, word, ',');) {
    std::string name = word.starts_with("SIG") ? word.substr(3) : word;
    if (name.empty() || name == "none") continue;
    int number = 0;
    for (const auto& [known, value] : kSignals) number = name == known ? value : number;
    if (number == 0) {
      throw Error(
          fmt::format("--signals {}: {} is none of USR1, USR2, TERM, INT, HUP, CONT", names, word));
    }
    signals.push_back(number);
  }
  return signals;
}

void watch_for_stop(StopSources sources) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.sources = std::move(sources);
  s.file_time = time_of(s.sources.file);
  s.last_look = now_seconds() - kSecondsBetweenLooks;
  s.reason.clear();
}

bool stop_requested() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const double now = now_seconds();
  last_poll = now;
  if (!s.reason.empty()) return true;
  if (caught_signal != 0) {
    s.reason = signal_name(caught_signal);
  } else if (now >= s.sources.deadline) {
    s.reason = "the end of the time limit";
  } else if (now - s.last_look >= kSecondsBetweenLooks) {
    s.last_look = now;
    s.reason = look_for_reason(s);
  }
  if (s.reason.empty()) return false;
  log_info(fmt::format("asked to stop by {}: saving", s.reason));
  ring(s.sources.bell, s.reason);
  return true;
}

std::string stop_reason() {
  const std::lock_guard lock(state().mutex);
  return state().reason;
}

double seconds_since_poll() { return now_seconds() - last_poll; }

void stop_if_asked() {
  if (stop_requested()) throw Stopped();
}

void run_together(const HostCollectives& ranks, const std::function<void()>& mine) {
  double stopped = 0;
  try {
    mine();
  } catch (const Stopped&) {
    stopped = 1;
  }
  ranks.all_reduce_max({&stopped, 1});
  if (stopped != 0) throw Stopped();
}

std::optional<double> slurm_seconds_left() {
  const char* job = std::getenv("SLURM_JOB_ID");
  if (job == nullptr || *job == '\0') return std::nullopt;
  for (const char* c = job; *c != '\0'; ++c) {
    if (std::isdigit(static_cast<unsigned char>(*c)) == 0) return std::nullopt;
  }
  const std::string command = fmt::format("timeout 15 squeue -h -j {} -o %L 2>/dev/null", job);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  std::array<char, 64> line{};
  const bool answered = fgets(line.data(), line.size(), pipe) != nullptr;
  pclose(pipe);
  return answered ? parse_slurm_duration(line.data()) : std::nullopt;
}

std::optional<double> parse_slurm_duration(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) {
    text.remove_suffix(1);
  }
  constexpr std::array<double, 3> kNext = {60, 60, 24};  // what a field's next larger one holds
  double seconds = 0, unit = 1;
  size_t field = 0, digits = 0;
  double place = 1;  // of the next digit, read from the right
  for (size_t i = text.size(); i-- > 0;) {
    const char c = text[i];
    if (std::isdigit(static_cast<unsigned char>(c)) != 0 && ++digits <= 9) {
      seconds += unit * place * (c - '0');
      place *= 10;
    } else if (digits > 0 && i > 0 && field < kNext.size() && c == (field == 2 ? '-' : ':')) {
      unit *= kNext[field++];
      place = 1;
      digits = 0;
    } else {
      return std::nullopt;
    }
  }
  return digits > 0 ? std::optional(seconds) : std::nullopt;
}

}  // namespace smalltalk
