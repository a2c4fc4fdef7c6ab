// Sends. Receives are not counted: the sender did.
#include <map>
#include <mutex>

#include "ledger_record.hpp"

namespace smalltalk::ledger {
namespace {

// A persistent send says at its making what every start of it will move.
struct PersistentSend {
  const char* call;
  CommunicatorKey comm;
  int64_t bytes;
};

struct PersistentSends {
  std::mutex mutex;
  std::map<MPI_Request, PersistentSend> sends;
};

PersistentSends& persistent() {
  static PersistentSends* const the_sends = new PersistentSends;
  return *the_sends;
}

int64_t sent_bytes(int count, MPI_Datatype type, int destination) {
  return destination == MPI_PROC_NULL ? 0 : bytes_of(count, type);
}

void remember(const char* call, MPI_Request request, MPI_Comm comm, int64_t bytes) {
  const std::lock_guard lock(persistent().mutex);
  persistent().sends[request] = {call, key_of(comm), bytes};
}

void forget(MPI_Request request) {
  const std::lock_guard lock(persistent().mutex);
  persistent().sends.erase(request);
}

void record_start(MPI_Request request) {
  const std::lock_guard lock(persistent().mutex);
  const auto found = persistent().sends.find(request);
  if (found == persistent().sends.end()) return;  // a persistent receive
  record(found->second.call, found->second.comm, found->second.bytes);
}

}  // namespace

void link_point_to_point_calls() {}

}  // namespace smalltalk::ledger

using namespace smalltalk::ledger;

#define ST_SEND(Name)                                                                        \
  int MPI_##Name(const void* buffer, int count, MPI_Datatype type, int destination, int tag, \
                 MPI_Comm comm) {                                                            \
    record("MPI_" #Name, comm, sent_bytes(count, type, destination));                        \
    return PMPI_##Name(buffer, count, type, destination, tag, comm);                         \
  }

#define ST_ISEND(Name)                                                                       \
  int MPI_##Name(const void* buffer, int count, MPI_Datatype type, int destination, int tag, \
                 MPI_Comm comm, MPI_Request* request) {                                      \
    record("MPI_" #Name, comm, sent_bytes(count, type, destination));                        \
    return PMPI_##Name(buffer, count, type, destination, tag, comm, request);                \
  }

#define ST_SEND_INIT(Name)                                                                   \
  int MPI_##Name(const void* buffer, int count, MPI_Datatype type, int destination, int tag, \
                 MPI_Comm comm, MPI_Request* request) {                                      \
    const int result = PMPI_##Name(buffer, count, type, destination, tag, comm, request);    \
    if (result == MPI_SUCCESS) {                                                             \
      remember("MPI_" #Name, *request, comm, sent_bytes(count, type, destination));          \
    }                                                                                        \
    return result;                                                                           \
  }

extern "C" {

ST_SEND(Send)
ST_SEND(Ssend)
ST_SEND(Bsend)
ST_SEND(Rsend)
ST_ISEND(Isend)
ST_ISEND(Issend)
ST_ISEND(Ibsend)
ST_ISEND(Irsend)
ST_SEND_INIT(Send_init)
ST_SEND_INIT(Ssend_init)
ST_SEND_INIT(Bsend_init)
ST_SEND_INIT(Rsend_init)

int MPI_Start(MPI_Request* request) {
  record_start(*request);
  return PMPI_Start(request);
}

int MPI_Startall(int count, MPI_Request requests[]) {
  for (int i = 0; i < count; ++i) record_start(requests[i]);
  return PMPI_Startall(count, requests);
}

// The handle may be given out again, to a receive.
int MPI_Request_free(MPI_Request* request) {
  forget(*request);
  return PMPI_Request_free(request);
}

int MPI_Sendrecv(const void* send, int send_count, MPI_Datatype send_type, int destination,
                 int send_tag, void* receive, int receive_count, MPI_Datatype receive_type,
                 int source, int receive_tag, MPI_Comm comm, MPI_Status* status) {
  record("MPI_Sendrecv", comm, sent_bytes(send_count, send_type, destination));
  return PMPI_Sendrecv(send, send_count, send_type, destination, send_tag, receive, receive_count,
                       receive_type, source, receive_tag, comm, status);
}

int MPI_Sendrecv_replace(void* buffer, int count, MPI_Datatype type, int destination, int send_tag,
                         int source, int receive_tag, MPI_Comm comm, MPI_Status* status) {
  record("MPI_Sendrecv_replace", comm, sent_bytes(count, type, destination));
  return PMPI_Sendrecv_replace(buffer, count, type, destination, send_tag, source, receive_tag,
                               comm, status);
}

}  // extern "C"
