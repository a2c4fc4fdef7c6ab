#include "smalltalk/core/system/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

namespace smalltalk {
namespace {

struct Event {
  const char* name;
  int64_t index;  // -1: none
  int thread;
  double start, end;
};

struct Recorder {
  std::atomic<bool> on{false};
  std::mutex mutex;  // of all below
  double origin = 0;
  std::vector<Event> events;
  std::vector<bool> thread_ids;  // taken
};

Recorder& recorder() {
  static auto& instance = *new Recorder;  // outlives threads that end after main()
  return instance;
}

// A number for this thread while it lives, the smallest that is free: threads that are started
// anew for each step then share a row of the trace.
class ThreadId {
 public:
  ThreadId() {
    Recorder& r = recorder();
    const std::lock_guard lock(r.mutex);
    const auto free = std::find(r.thread_ids.begin(), r.thread_ids.end(), false);
    id_ = static_cast<int>(free - r.thread_ids.begin());
    if (free == r.thread_ids.end()) r.thread_ids.push_back(false);
    r.thread_ids[static_cast<size_t>(id_)] = true;
  }
  ~ThreadId() {
    Recorder& r = recorder();
    const std::lock_guard lock(r.mutex);
    r.thread_ids[static_cast<size_t>(id_)] = false;
  }
  ThreadId(const ThreadId&) = delete;
  ThreadId& operator=(const ThreadId&) = delete;
  int id() const { return id_; }

 private:
  int id_;
};

int thread_id() {
  static thread_local const ThreadId id;
  return id.id();
}

}  // namespace

TraceSpan::TraceSpan(const char* name, double* seconds, int64_t index)
    : name_(name),
      seconds_(seconds),
      index_(index),
      recorded_(recorder().on.load(std::memory_order_relaxed)) {
  if (recorded_ || seconds_ != nullptr) start_ = now_seconds();
}

TraceSpan::~TraceSpan() {
  if (!recorded_ && seconds_ == nullptr) return;
  const double end = now_seconds();
  if (seconds_ != nullptr) *seconds_ += end - start_;
  if (!recorded_) return;
  const int thread = thread_id();
  Recorder& r = recorder();
  const std::lock_guard lock(r.mutex);
  // A span that began in an earlier recording has no place in this one.
  if (r.on && start_ >= r.origin) r.events.push_back({name_, index_, thread, start_, end});
}

void start_trace(double origin) {
  thread_id();
  Recorder& r = recorder();
  const std::lock_guard lock(r.mutex);
  r.events.clear();
  r.origin = origin;
  r.on = true;
}

std::string stop_trace(int process) {
  Recorder& r = recorder();
  const std::lock_guard lock(r.mutex);
  r.on = false;
  std::string text = fmt::format(
      R"({{"name":"process_name","ph":"M","pid":{0},"tid":0,"args":{{"name":"rank {0}"}}}})",
      process);
  constexpr double kMicroseconds = 1e6;  // the unit of the format
  for (const Event& event : r.events) {
    text += fmt::format(
        ",\n"
        R"({{"name":"{}{}","ph":"X","ts":{:.3f},"dur":{:.3f},"pid":{},"tid":{}}})",
        event.name, event.index < 0 ? "" : fmt::format(" {}", event.index),
        (event.start - r.origin) * kMicroseconds, (event.end - event.start) * kMicroseconds,
        process, event.thread);
  }
  r.events.clear();
  return text;
}

std::string trace_json(const std::string& events) {
  return "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n" + events + "\n]}\n";
}

}  // namespace smalltalk
