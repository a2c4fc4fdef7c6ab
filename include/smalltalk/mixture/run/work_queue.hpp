// Work that any process may do, in a queue of files: each piece is claimed by one process of a
// start of the job, and processes of different groups never talk.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk {

struct Work {
  std::string name;
  std::function<bool()> complete;
  std::function<void()> compute;
  std::function<bool()> ready = [] { return true; };
};

// Some of many pieces of work: those with index part, part + parts, ...
struct WorkPart {
  int64_t part = 0, parts = 1;
};

// Does what is ready and nobody else does, each piece once. Needs no other rank. Returns whether
// all is complete, no part of it is left to others, and this process is the one to go on. `start`
// names the start of the job whose claims count. Throws Stopped if this process is asked to stop.
bool work_off(const RunLayout& layout, const std::string& start, const std::vector<Work>& pieces,
              WorkPart part = {});

}  // namespace smalltalk
