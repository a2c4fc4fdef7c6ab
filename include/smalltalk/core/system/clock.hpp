// The clock by which everything is timed.
#pragma once

namespace smalltalk {

double now_seconds();  // monotonic: comparable within a process, and no time of day

}  // namespace smalltalk
