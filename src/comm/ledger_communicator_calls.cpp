// Making communicators talks too: it counts as a call on the parent, with what this rank says.
#include "ledger_record.hpp"

namespace smalltalk::ledger {
void link_communicator_calls() {}
}  // namespace smalltalk::ledger

using smalltalk::ledger::record;

extern "C" {

int MPI_Comm_split(MPI_Comm comm, int color, int key, MPI_Comm* made) {
  record("MPI_Comm_split", comm, 2 * static_cast<int64_t>(sizeof(int)));
  return PMPI_Comm_split(comm, color, key, made);
}

int MPI_Comm_split_type(MPI_Comm comm, int type, int key, MPI_Info info, MPI_Comm* made) {
  record("MPI_Comm_split_type", comm, 2 * static_cast<int64_t>(sizeof(int)));
  return PMPI_Comm_split_type(comm, type, key, info, made);
}

int MPI_Comm_dup(MPI_Comm comm, MPI_Comm* made) {
  record("MPI_Comm_dup", comm, 0);
  return PMPI_Comm_dup(comm, made);
}

int MPI_Comm_dup_with_info(MPI_Comm comm, MPI_Info info, MPI_Comm* made) {
  record("MPI_Comm_dup_with_info", comm, 0);
  return PMPI_Comm_dup_with_info(comm, info, made);
}

int MPI_Comm_idup(MPI_Comm comm, MPI_Comm* made, MPI_Request* request) {
  record("MPI_Comm_idup", comm, 0);
  return PMPI_Comm_idup(comm, made, request);
}

int MPI_Comm_create(MPI_Comm comm, MPI_Group group, MPI_Comm* made) {
  record("MPI_Comm_create", comm, 0);
  return PMPI_Comm_create(comm, group, made);
}

int MPI_Comm_create_group(MPI_Comm comm, MPI_Group group, int tag, MPI_Comm* made) {
  record("MPI_Comm_create_group", comm, 0);
  return PMPI_Comm_create_group(comm, group, tag, made);
}

}  // extern "C"
