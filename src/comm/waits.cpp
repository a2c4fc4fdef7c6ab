#include "waits.hpp"

#include <algorithm>
#include <map>
#include <mutex>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

// One per process, like MPI itself; threads of a group's backend wait beside the main thread.
struct Table {
  std::mutex mutex;
  uint64_t next_id = 0;
  std::map<uint64_t, WaitState> waits;
  std::map<std::string, int64_t> entered;
  double last_change = now_seconds();
};

Table& table() {
  static Table* const the_table = new Table;  // never destroyed: MPI may be called at exit
  return *the_table;
}

}  // namespace

Wait::Wait(const std::string& communicator, const std::vector<int>& members, const char* call) {
  const std::lock_guard lock(table().mutex);
  id_ = table().next_id++;
  table().last_change = now_seconds();
  const int64_t number = ++table().entered[communicator];
  table().waits[id_] = {communicator, call, number, table().last_change, members};
}

Wait::~Wait() {
  const std::lock_guard lock(table().mutex);
  table().waits.erase(id_);
  table().last_change = now_seconds();
}

WaitState longest_wait() {
  const std::lock_guard lock(table().mutex);
  const auto first = std::min_element(
      table().waits.begin(), table().waits.end(),
      [](const auto& a, const auto& b) { return a.second.since < b.second.since; });
  return first == table().waits.end() ? WaitState() : first->second;
}

int64_t collectives_entered(const std::string& communicator) {
  const std::lock_guard lock(table().mutex);
  const auto found = table().entered.find(communicator);
  return found == table().entered.end() ? 0 : found->second;
}

double seconds_without_progress() {
  const std::lock_guard lock(table().mutex);
  return std::min(now_seconds() - table().last_change, seconds_since_poll());
}

}  // namespace smalltalk
