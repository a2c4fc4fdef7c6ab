// What this process waits for at the moment: every collective of a Communicator is noted here while
// it lasts, for the watchdog. Private to comm.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace smalltalk {

struct WaitState {
  std::string communicator;
  std::string call;
  int64_t number = 0;        // of the collective on its communicator, from 1; the same on all ranks
  double since = 0;          // now_seconds()
  std::vector<int> members;  // world ranks
};

// Notes a collective from here to the end of the scope.
class Wait {
 public:
  Wait(const std::string& communicator, const std::vector<int>& members, const char* call);
  ~Wait();
  Wait(const Wait&) = delete;
  Wait& operator=(const Wait&) = delete;

 private:
  uint64_t id_;
};

// The longest of the waits; one without members if this process waits for nobody.
WaitState longest_wait();
// How many collectives this process has entered on the communicator of that name.
int64_t collectives_entered(const std::string& communicator);
// Seconds since this process entered or left a collective or polled (core/system/stop.hpp).
double seconds_without_progress();

}  // namespace smalltalk
