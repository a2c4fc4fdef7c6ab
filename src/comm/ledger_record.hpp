// Between the wrappers of MPI's calls (ledger_*_calls.cpp) and the table (ledger.cpp).
#pragma once

#include <mpi.h>

#include <cstdint>
#include <string>

namespace smalltalk::ledger {

// A communicator as the table knows it.
struct CommunicatorKey {
  std::string name;  // "unnamed" if nobody named it, so that it never passes as somebody's group
  int size = 0;
};
CommunicatorKey key_of(MPI_Comm comm);

void record(const char* call, const CommunicatorKey& comm, int64_t bytes);
void record(const char* call, MPI_Comm comm, int64_t bytes);

// Bytes of `count` elements.
int64_t bytes_of(int64_t count, MPI_Datatype type);
int size_of(MPI_Comm comm);
int rank_of(MPI_Comm comm);

// The wrappers live in a static library, from which a linker takes what somebody refers to. These
// do nothing but be referred to.
void link_point_to_point_calls();
void link_collective_calls();
void link_communicator_calls();
void link_one_sided_calls();

}  // namespace smalltalk::ledger

namespace smalltalk {
// Called by the session: whoever has a session has the whole ledger.
void link_ledger_calls();
}  // namespace smalltalk
