#include "smalltalk/comm/ledger.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "ledger_record.hpp"
#include "watchdog.hpp"

namespace smalltalk {
namespace {

struct PhaseRow {
  Phase phase;
  const char* name;
  bool after_shards;
};

constexpr PhaseRow kPhases[] = {
    {Phase::start, "start", false},    {Phase::prepare, "prepare", false},
    {Phase::order, "order", false},    {Phase::route, "route", false},
    {Phase::shard, "shard", false},    {Phase::assign, "assign", false},
    {Phase::experts, "experts", true}, {Phase::baselines, "baselines", true},
    {Phase::train, "train", true},     {Phase::evaluate, "evaluate", true},
    {Phase::compare, "compare", true}, {Phase::tasks, "tasks", true},
    {Phase::end, "end", false},
};

const PhaseRow& row_of(Phase phase) { return *std::ranges::find(kPhases, phase, &PhaseRow::phase); }

struct Counts {
  int64_t calls = 0;
  int64_t bytes = 0;
  int communicator_size = 0;
};

// One per process, like MPI itself, whose profiling interface hands its wrappers no context.
struct Table {
  std::mutex mutex;
  Phase phase = Phase::start;
  std::string group;
  // (phase, communicator, call)
  std::map<std::tuple<Phase, std::string, std::string>, Counts> counts;
};

Table& table() {
  static Table* const the_table = new Table;  // never destroyed: MPI may be called at exit
  return *the_table;
}

}  // namespace

std::string to_string(Phase phase) { return row_of(phase).name; }

bool after_shards(Phase phase) { return row_of(phase).after_shards; }

void set_ledger_phase(Phase phase) {
  const std::lock_guard lock(table().mutex);
  table().phase = phase;
}

Phase ledger_phase() {
  const std::lock_guard lock(table().mutex);
  return table().phase;
}

void set_ledger_group(const std::string& communicator) {
  const std::lock_guard lock(table().mutex);
  table().group = communicator;
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

LedgerOutside ledger_outside(const std::function<bool(Phase)>& in) {
  const std::lock_guard lock(table().mutex);
  LedgerOutside sum;
  for (const auto& [key, counts] : table().counts) {
    const auto& [phase, communicator, call] = key;
    if (!in(phase) || communicator == table().group || communicator == Watchdog::kCommunicator) {
      continue;
    }
    if (counts.communicator_size == 1) continue;  // talked to itself
    sum.calls += counts.calls;
    sum.bytes += counts.bytes;
    sum.what.push_back(call + " on " + communicator + " in " + to_string(phase));
  }
  return sum;
}

void clear_ledger() {
  const std::lock_guard lock(table().mutex);
  table().counts.clear();
  table().group.clear();
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
