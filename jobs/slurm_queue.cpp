#include "slurm_queue.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <sstream>

namespace smalltalk {

namespace {

// slurm/submit asks for the same lines.
constexpr const char* kSqueue =
    "timeout 15 squeue --noheader --array --me --format='%i|%K|%T|%r|%k' 2>/dev/null";

std::vector<std::string> split(const std::string& line, char separator, size_t most) {
  std::vector<std::string> fields;
  size_t at = 0;
  while (fields.size() + 1 < most) {
    const size_t end = line.find(separator, at);
    if (end == std::string::npos) break;
    fields.push_back(line.substr(at, end - at));
    at = end + 1;
  }
  fields.push_back(line.substr(at));
  return fields;
}

std::optional<int64_t> integer(const std::string& text) {
  try {
    return std::stoll(text);
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

}  // namespace

std::optional<std::string> ask_squeue() {
  FILE* pipe = ::popen(kSqueue, "r");
  if (pipe == nullptr) return std::nullopt;
  std::string text;
  std::array<char, 4096> buffer{};
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    text.append(buffer.data(), count);
  }
  if (::pclose(pipe) != 0) return std::nullopt;
  return text;
}

std::vector<QueuedJob> parse_queue(const std::string& text, const std::string& run_id) {
  std::vector<QueuedJob> jobs;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::vector<std::string> fields = split(line, '|', 5);
    if (fields.size() < 5) continue;
    // The comment is smalltalk:ID:STAGE:OFFSET:PARTS.
    const std::vector<std::string> comment = split(fields[4], ':', 5);
    if (comment.size() < 5 || comment[0] != "smalltalk" || comment[1] != run_id) continue;
    static const std::vector<std::string> kWaiting = {"PENDING", "REQUEUED", "REQUEUE_HOLD",
                                                      "REQUEUE_FED", "SPECIAL_EXIT"};
    QueuedJob job{fields[0], true, "", comment[2], 0, integer(comment[4]).value_or(1)};
    if (std::find(kWaiting.begin(), kWaiting.end(), fields[2]) != kWaiting.end()) {
      job.running = false;
      job.reason = fields[3];
    }
    // Of a single job the array index is "N/A".
    job.index = integer(fields[1]).value_or(0) + integer(comment[3]).value_or(0);
    jobs.push_back(job);
  }
  return jobs;
}

}  // namespace smalltalk
