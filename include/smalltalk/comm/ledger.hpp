// What was sent, counted where it cannot be forgotten: the profiling interface of MPI (PMPI). Every
// send, collective and one-sided call of this process is counted by phase and communicator. The
// claim "experts do not talk" is a zero in this table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace smalltalk {

struct LedgerEntry {
  std::string phase;
  std::string communicator;
  std::string call;  // "MPI_Allgatherv"
  int64_t calls = 0;
  int64_t bytes = 0;  // this rank put into the call (its send buffers); of a get, what it got
};

// Later calls count under this phase. Phases of a run: "start", "route", "shard", "experts",
// "baselines", "evaluate".
void set_ledger_phase(const std::string& phase);
std::string ledger_phase();
std::vector<LedgerEntry> ledger_entries();  // of this process, sorted
// Calls and bytes of a phase on communicators other than `allowed` (an expert's own group), with
// their names joined by commas. Communicators of one rank do not count: nothing left the process.
LedgerEntry ledger_outside(const std::string& phase, const std::string& allowed);
void clear_ledger();

}  // namespace smalltalk
