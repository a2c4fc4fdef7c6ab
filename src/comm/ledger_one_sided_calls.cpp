// One-sided calls. A window is counted under the communicator it was made from. Loads and stores
// through shared windows cannot be seen here; nothing of ours makes one, and the call that makes it
// is in the table.
#include <map>
#include <mutex>

#include "ledger_record.hpp"

namespace smalltalk::ledger {
namespace {

struct Windows {
  std::mutex mutex;
  std::map<MPI_Win, CommunicatorKey> communicators;
};

Windows& windows() {
  static Windows* const the_windows = new Windows;
  return *the_windows;
}

// By pointer: as an argument beside the call that makes it, the handle could be read too early.
int remember(int result, const MPI_Win* window, MPI_Comm comm) {
  if (result != MPI_SUCCESS) return result;
  const std::lock_guard lock(windows().mutex);
  windows().communicators[*window] = key_of(comm);
  return result;
}

void forget(MPI_Win window) {
  const std::lock_guard lock(windows().mutex);
  windows().communicators.erase(window);
}

void record_window(const char* call, MPI_Win window, int64_t bytes) {
  CommunicatorKey comm{"unnamed", 2};
  {
    const std::lock_guard lock(windows().mutex);
    const auto found = windows().communicators.find(window);
    if (found != windows().communicators.end()) comm = found->second;
  }
  record(call, comm, bytes);
}

}  // namespace

void link_one_sided_calls() {}

}  // namespace smalltalk::ledger

using namespace smalltalk::ledger;

// The arguments that most of these calls begin with.
#define ST_ORIGIN const void *origin, int origin_count, MPI_Datatype origin_type
#define ST_TARGET int target, MPI_Aint offset, int target_count, MPI_Datatype target_type

extern "C" {

int MPI_Win_create(void* base, MPI_Aint size, int unit, MPI_Info info, MPI_Comm comm,
                   MPI_Win* window) {
  record("MPI_Win_create", comm, 0);
  return remember(PMPI_Win_create(base, size, unit, info, comm, window), window, comm);
}

int MPI_Win_allocate(MPI_Aint size, int unit, MPI_Info info, MPI_Comm comm, void* base,
                     MPI_Win* window) {
  record("MPI_Win_allocate", comm, 0);
  return remember(PMPI_Win_allocate(size, unit, info, comm, base, window), window, comm);
}

int MPI_Win_allocate_shared(MPI_Aint size, int unit, MPI_Info info, MPI_Comm comm, void* base,
                            MPI_Win* window) {
  record("MPI_Win_allocate_shared", comm, 0);
  return remember(PMPI_Win_allocate_shared(size, unit, info, comm, base, window), window, comm);
}

int MPI_Win_create_dynamic(MPI_Info info, MPI_Comm comm, MPI_Win* window) {
  record("MPI_Win_create_dynamic", comm, 0);
  return remember(PMPI_Win_create_dynamic(info, comm, window), window, comm);
}

int MPI_Win_free(MPI_Win* window) {
  record_window("MPI_Win_free", *window, 0);
  forget(*window);
  return PMPI_Win_free(window);
}

int MPI_Win_fence(int assertion, MPI_Win window) {
  record_window("MPI_Win_fence", window, 0);
  return PMPI_Win_fence(assertion, window);
}

int MPI_Put(ST_ORIGIN, ST_TARGET, MPI_Win window) {
  record_window("MPI_Put", window, bytes_of(origin_count, origin_type));
  return PMPI_Put(origin, origin_count, origin_type, target, offset, target_count, target_type,
                  window);
}

int MPI_Rput(ST_ORIGIN, ST_TARGET, MPI_Win window, MPI_Request* request) {
  record_window("MPI_Rput", window, bytes_of(origin_count, origin_type));
  return PMPI_Rput(origin, origin_count, origin_type, target, offset, target_count, target_type,
                   window, request);
}

// What a get moves is counted by who gets: the other side makes no call.
int MPI_Get(void* origin, int origin_count, MPI_Datatype origin_type, ST_TARGET, MPI_Win window) {
  record_window("MPI_Get", window, bytes_of(origin_count, origin_type));
  return PMPI_Get(origin, origin_count, origin_type, target, offset, target_count, target_type,
                  window);
}

int MPI_Rget(void* origin, int origin_count, MPI_Datatype origin_type, ST_TARGET, MPI_Win window,
             MPI_Request* request) {
  record_window("MPI_Rget", window, bytes_of(origin_count, origin_type));
  return PMPI_Rget(origin, origin_count, origin_type, target, offset, target_count, target_type,
                   window, request);
}

int MPI_Accumulate(ST_ORIGIN, ST_TARGET, MPI_Op op, MPI_Win window) {
  record_window("MPI_Accumulate", window, bytes_of(origin_count, origin_type));
  return PMPI_Accumulate(origin, origin_count, origin_type, target, offset, target_count,
                         target_type, op, window);
}

int MPI_Raccumulate(ST_ORIGIN, ST_TARGET, MPI_Op op, MPI_Win window, MPI_Request* request) {
  record_window("MPI_Raccumulate", window, bytes_of(origin_count, origin_type));
  return PMPI_Raccumulate(origin, origin_count, origin_type, target, offset, target_count,
                          target_type, op, window, request);
}

int MPI_Get_accumulate(ST_ORIGIN, void* result, int result_count, MPI_Datatype result_type,
                       ST_TARGET, MPI_Op op, MPI_Win window) {
  record_window("MPI_Get_accumulate", window,
                bytes_of(op == MPI_NO_OP ? 0 : origin_count, origin_type) +
                    bytes_of(result_count, result_type));
  return PMPI_Get_accumulate(origin, origin_count, origin_type, result, result_count, result_type,
                             target, offset, target_count, target_type, op, window);
}

int MPI_Rget_accumulate(ST_ORIGIN, void* result, int result_count, MPI_Datatype result_type,
                        ST_TARGET, MPI_Op op, MPI_Win window, MPI_Request* request) {
  record_window("MPI_Rget_accumulate", window,
                bytes_of(op == MPI_NO_OP ? 0 : origin_count, origin_type) +
                    bytes_of(result_count, result_type));
  return PMPI_Rget_accumulate(origin, origin_count, origin_type, result, result_count, result_type,
                              target, offset, target_count, target_type, op, window, request);
}

int MPI_Fetch_and_op(const void* origin, void* result, MPI_Datatype type, int target,
                     MPI_Aint offset, MPI_Op op, MPI_Win window) {
  record_window("MPI_Fetch_and_op", window, bytes_of(op == MPI_NO_OP ? 1 : 2, type));
  return PMPI_Fetch_and_op(origin, result, type, target, offset, op, window);
}

int MPI_Compare_and_swap(const void* origin, const void* compare, void* result, MPI_Datatype type,
                         int target, MPI_Aint offset, MPI_Win window) {
  record_window("MPI_Compare_and_swap", window, bytes_of(3, type));
  return PMPI_Compare_and_swap(origin, compare, result, type, target, offset, window);
}

}  // extern "C"
