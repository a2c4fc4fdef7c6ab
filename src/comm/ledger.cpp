#include "smalltalk/comm/ledger.hpp"

#include <map>
#include <mutex>
#include <set>
#include <tuple>

#include "ledger_record.hpp"

namespace smalltalk {
namespace {

struct Counts {
  int64_t calls = 0;
  int64_t bytes = 0;
  int communicator_size = 0;
};

// One per process, like MPI itself, whose profiling interface hands its wrappers no context.
struct Table {
  std::mutex mutex;
  std::string phase = "start";
  // (phase, communicator, call)
  std::map<std::tuple<std::string, std::string, std::string>, Counts> counts;
};

Table& table() {
  static Table* const the_table = new Table;  // never destroyed: MPI may be called at exit
  return *the_table;
}

std::string joined(const std::set<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

void set_ledger_phase(const std::string& phase) {
  const std::lock_guard lock(table().mutex);
  table().phase = phase;
}

std::string ledger_phase() {
  const std::lock_guard lock(table().mutex);
  return table().phase;
}

std::vector<LedgerEntry> ledger_entries() {
  const std::lock_guard lock(table().mutex);
  std::vector<LedgerEntry> entries;
  for (const auto& [key, counts] : table().counts) {
    const auto& [phase, communicator, call] = key;
    entries.push_back({phase, communicator, call, counts.calls, counts.bytes});
  }
  return entries;
}

LedgerEntry ledger_outside(const std::string& phase, const std::string& allowed) {
  const std::lock_guard lock(table().mutex);
  LedgerEntry sum;
  sum.phase = phase;
  std::set<std::string> communicators, calls;
  for (const auto& [key, counts] : table().counts) {
    const auto& [key_phase, communicator, call] = key;
    if (key_phase != phase || communicator == allowed) continue;
    if (counts.communicator_size == 1) continue;  // talked to itself
    sum.calls += counts.calls;
    sum.bytes += counts.bytes;
    communicators.insert(communicator);
    calls.insert(call);
  }
  sum.communicator = joined(communicators);
  sum.call = joined(calls);
  return sum;
}

void clear_ledger() {
  const std::lock_guard lock(table().mutex);
  table().counts.clear();
}

void link_ledger_calls() {
  ledger::link_point_to_point_calls();
  ledger::link_collective_calls();
  ledger::link_communicator_calls();
  ledger::link_one_sided_calls();
}

namespace ledger {

CommunicatorKey key_of(MPI_Comm comm) {
  if (comm == MPI_COMM_NULL) return {"null", 1};
  char name[MPI_MAX_OBJECT_NAME] = {};
  int length = 0;
  PMPI_Comm_get_name(comm, name, &length);
  // An intercommunicator has peers even if its local group is this rank alone.
  int inter = 0;
  PMPI_Comm_test_inter(comm, &inter);
  const int peers = inter ? size_of(comm) + 1 : size_of(comm);
  return {length > 0 ? std::string(name) : "unnamed", peers};
}

void record(const char* call, const CommunicatorKey& comm, int64_t bytes) {
  const std::lock_guard lock(table().mutex);
  Counts& counts = table().counts[{table().phase, comm.name, call}];
  ++counts.calls;
  counts.bytes += bytes;
  // Two communicators may share a name: the larger one decides.
  if (comm.size > counts.communicator_size) counts.communicator_size = comm.size;
}

void record(const char* call, MPI_Comm comm, int64_t bytes) { record(call, key_of(comm), bytes); }

int64_t bytes_of(int64_t count, MPI_Datatype type) {
  if (count == 0 || type == MPI_DATATYPE_NULL) return 0;
  MPI_Count size = 0;
  PMPI_Type_size_x(type, &size);
  return count * static_cast<int64_t>(size);
}

int size_of(MPI_Comm comm) {
  int size = 0;
  PMPI_Comm_size(comm, &size);
  return size;
}

int rank_of(MPI_Comm comm) {
  int rank = 0;
  PMPI_Comm_rank(comm, &rank);
  return rank;
}

}  // namespace ledger
}  // namespace smalltalk
