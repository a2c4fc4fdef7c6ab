// What was sent, counted where it cannot be forgotten: the profiling interface of MPI (PMPI). Every
// send, collective and one-sided call of this process is counted by phase and communicator. The
// claim "experts do not talk" is a zero in this table.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace smalltalk {

// What a process is at. A job of one stage has one phase, `launch` goes from phase to phase.
enum class Phase {
  start,
  prepare,
  order,
  route,
  shard,
  assign,
  experts,    // of launch: a group trains its own experts, then
  baselines,  // what else there is to train
  train,      // a job that trains one model
  evaluate,
  compare,
  tasks,
  end,
};
std::string to_string(Phase phase);  // its name, as in ledger files
// Whether it needs the shards, so that nobody may talk outside its own group.
bool after_shards(Phase phase);

struct LedgerEntry {
  Phase phase;
  std::string communicator;
  std::string call;  // "MPI_Allgatherv"
  int64_t calls = 0;
  int64_t bytes = 0;  // this rank put into the call (its send buffers); of a get, what it got
};

// What went over communicators other than the own group's. Those of one rank do not count: nothing
// left the process. Nor does the watchdog's: it asks nobody but the ranks of a communicator that
// somebody waits in, which after the shards is a group.
struct LedgerOutside {
  int64_t calls = 0;
  int64_t bytes = 0;
  std::vector<std::string> what;  // "MPI_Send on MPI_COMM_WORLD in experts"
};

void set_ledger_phase(Phase phase);  // later calls count under it
Phase ledger_phase();
// The one communicator that is allowed after the shards, an expert's own group; at first none.
void set_ledger_group(const std::string& communicator);
std::vector<LedgerEntry> ledger_entries();                           // of this process, sorted
LedgerOutside ledger_outside(const std::function<bool(Phase)>& in);  // sum over such phases
void clear_ledger();                                                 // forgets the group, too

// Writes the ledger of this process, which is that rank of that start of a job: a file of JSON,
// <start>-rank-<r>.json in `folder`.
void write_ledger(const std::filesystem::path& folder, const std::string& start, int rank);
// Calls `body`, then writes the ledger, also if `body` was stopped. Error, when all that is done:
// this rank sent bytes outside its group after the shards.
void count_in_ledger(const std::filesystem::path& folder, const std::string& start, int rank,
                     const std::function<void()>& body);

}  // namespace smalltalk
