// What people see: log lines on stderr with a prefix such as "[route rank 0]", and the progress of
// long work, a bar on a terminal, a line every few seconds in a log file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace smalltalk {

// The prefix of all later lines of this process, e.g. "route rank 0". Empty: none.
void set_log_prefix(std::string prefix);
// Lines of ranks that are muted go nowhere; errors always print.
void set_log_muted(bool muted);
void log_info(std::string_view line);
void log_warning(std::string_view line);
void log_error(std::string_view line);

int64_t peak_memory_bytes();  // the most that this process has held in memory

// "1.23 M", "4.5 G": for counts, FLOPs; "1.2 GiB" for bytes; "3 min 20 s" for durations.
std::string human_count(double value);
std::string human_bytes(double bytes);
std::string human_duration(double seconds);

// Rows of as many cells each, as text: every column but the last is padded to its widest cell and
// two spaces.
std::string aligned(const std::vector<std::vector<std::string>>& rows,
                    const std::string& indent = "");

// Progress of one long piece of work. Prints rate and time left; silent if muted.
class Progress {
 public:
  Progress(std::string label, int64_t total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(int64_t done, std::string_view note = {});

 private:
  void print(bool last);
  std::string label_;
  std::string unit_;
  std::string note_;
  int64_t total_;
  int64_t done_ = 0;
  int64_t first_done_ = -1;  // of the first update
  double first_time_ = 0;
  double start_;
  double last_print_;
  bool terminal_;
};

}  // namespace smalltalk
