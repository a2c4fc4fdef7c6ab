// Spans of work on the threads of this process, to see where the time of a training step goes:
// events of the Chrome trace format, which Perfetto and chrome://tracing show.
#pragma once

#include <cstdint>
#include <string>

#include "smalltalk/core/system/clock.hpp"

namespace smalltalk {

// A span lasts from its construction to its destruction. While nothing is recorded it costs a call
// and one atomic load; with `seconds`, to which its length is added, two looks at the clock more.
class TraceSpan {
 public:
  // `name` must outlive the recording and hold no character that JSON escapes: a literal.
  explicit TraceSpan(const char* name) : TraceSpan(name, nullptr, -1) {}
  TraceSpan(const char* name, double& seconds) : TraceSpan(name, &seconds, -1) {}
  TraceSpan(const char* name, int64_t index) : TraceSpan(name, nullptr, index) {}  // "layer 3"
  ~TraceSpan();
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceSpan(const char* name, double* seconds, int64_t index);
  const char* name_;
  double* seconds_;
  int64_t index_;
  bool recorded_;
  double start_ = 0;
};

// Records all spans that begin from now on; forgets those recorded before. The calling thread is
// thread 0 of the trace; times count from `origin`, of now_seconds() and not later than now.
void start_trace(double origin = now_seconds());
// Ends the recording. Returns the events of this process, JSON objects with commas between them;
// `process`, a rank, tells processes apart in trace_json().
std::string stop_trace(int process);
// The file: {"traceEvents": [...]} of the events of one or more processes.
std::string trace_json(const std::string& events);

}  // namespace smalltalk
