// Collectives, blocking and not. Bytes are what this rank puts in: all of its send buffer, one copy
// for each receiver where the call says so (scatter, all-to-all), this rank among them. With
// MPI_IN_PLACE, its part of the receive buffer.
//
// A blocking call and its nonblocking twin differ by one argument; ST_BOTH writes both wrappers.
#include "ledger_record.hpp"

namespace smalltalk::ledger {
namespace {

// Sum of counts over the ranks of comm.
int64_t total(const int counts[], MPI_Comm comm) {
  int64_t sum = 0;
  const int size = size_of(comm);
  for (int r = 0; r < size; ++r) sum += counts[r];
  return sum;
}

int64_t total_bytes(const int counts[], const MPI_Datatype types[], MPI_Comm comm) {
  int64_t sum = 0;
  const int size = size_of(comm);
  for (int r = 0; r < size; ++r) sum += bytes_of(counts[r], types[r]);
  return sum;
}

bool in_place(const void* send) { return send == MPI_IN_PLACE; }

}  // namespace

void link_collective_calls() {}

}  // namespace smalltalk::ledger

using namespace smalltalk::ledger;

// ST_BOTH(Bcast, Ibcast, bytes, (parameters), (arguments)); parameters end with `MPI_Comm comm`.
#define ST_UNPACK(...) __VA_ARGS__
#define ST_BOTH(Name, IName, bytes, parameters, arguments)      \
  int MPI_##Name(ST_UNPACK parameters) {                        \
    record("MPI_" #Name, comm, bytes);                          \
    return PMPI_##Name(ST_UNPACK arguments);                    \
  }                                                             \
  int MPI_##IName(ST_UNPACK parameters, MPI_Request* request) { \
    record("MPI_" #IName, comm, bytes);                         \
    return PMPI_##IName(ST_UNPACK arguments, request);          \
  }

extern "C" {

ST_BOTH(Barrier, Ibarrier, 0, (MPI_Comm comm), (comm))

ST_BOTH(Bcast, Ibcast, rank_of(comm) == root ? bytes_of(count, type) : 0,
        (void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm),
        (buffer, count, type, root, comm))

ST_BOTH(Reduce, Ireduce, bytes_of(count, type),
        (const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op, int root,
         MPI_Comm comm),
        (send, receive, count, type, op, root, comm))

ST_BOTH(Allreduce, Iallreduce, bytes_of(count, type),
        (const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm),
        (send, receive, count, type, op, comm))

ST_BOTH(Scan, Iscan, bytes_of(count, type),
        (const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm),
        (send, receive, count, type, op, comm))

ST_BOTH(Exscan, Iexscan, bytes_of(count, type),
        (const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm),
        (send, receive, count, type, op, comm))

ST_BOTH(Reduce_scatter_block, Ireduce_scatter_block,
        bytes_of(int64_t{receive_count} * size_of(comm), type),
        (const void* send, void* receive, int receive_count, MPI_Datatype type, MPI_Op op,
         MPI_Comm comm),
        (send, receive, receive_count, type, op, comm))

ST_BOTH(Reduce_scatter, Ireduce_scatter, bytes_of(total(receive_counts, comm), type),
        (const void* send, void* receive, const int receive_counts[], MPI_Datatype type, MPI_Op op,
         MPI_Comm comm),
        (send, receive, receive_counts, type, op, comm))

ST_BOTH(Gather, Igather,
        in_place(send) ? bytes_of(receive_count, receive_type) : bytes_of(send_count, send_type),
        (const void* send, int send_count, MPI_Datatype send_type, void* receive, int receive_count,
         MPI_Datatype receive_type, int root, MPI_Comm comm),
        (send, send_count, send_type, receive, receive_count, receive_type, root, comm))

ST_BOTH(Gatherv, Igatherv,
        in_place(send) ? bytes_of(receive_counts[rank_of(comm)], receive_type)
                       : bytes_of(send_count, send_type),
        (const void* send, int send_count, MPI_Datatype send_type, void* receive,
         const int receive_counts[], const int offsets[], MPI_Datatype receive_type, int root,
         MPI_Comm comm),
        (send, send_count, send_type, receive, receive_counts, offsets, receive_type, root, comm))

ST_BOTH(Allgather, Iallgather,
        in_place(send) ? bytes_of(receive_count, receive_type) : bytes_of(send_count, send_type),
        (const void* send, int send_count, MPI_Datatype send_type, void* receive, int receive_count,
         MPI_Datatype receive_type, MPI_Comm comm),
        (send, send_count, send_type, receive, receive_count, receive_type, comm))

ST_BOTH(Allgatherv, Iallgatherv,
        in_place(send) ? bytes_of(receive_counts[rank_of(comm)], receive_type)
                       : bytes_of(send_count, send_type),
        (const void* send, int send_count, MPI_Datatype send_type, void* receive,
         const int receive_counts[], const int offsets[], MPI_Datatype receive_type, MPI_Comm comm),
        (send, send_count, send_type, receive, receive_counts, offsets, receive_type, comm))

ST_BOTH(Scatter, Iscatter,
        rank_of(comm) == root ? bytes_of(int64_t{send_count} * size_of(comm), send_type) : 0,
        (const void* send, int send_count, MPI_Datatype send_type, void* receive, int receive_count,
         MPI_Datatype receive_type, int root, MPI_Comm comm),
        (send, send_count, send_type, receive, receive_count, receive_type, root, comm))

ST_BOTH(Scatterv, Iscatterv,
        rank_of(comm) == root ? bytes_of(total(send_counts, comm), send_type) : 0,
        (const void* send, const int send_counts[], const int offsets[], MPI_Datatype send_type,
         void* receive, int receive_count, MPI_Datatype receive_type, int root, MPI_Comm comm),
        (send, send_counts, offsets, send_type, receive, receive_count, receive_type, root, comm))

ST_BOTH(Alltoall, Ialltoall,
        in_place(send) ? bytes_of(int64_t{receive_count} * size_of(comm), receive_type)
                       : bytes_of(int64_t{send_count} * size_of(comm), send_type),
        (const void* send, int send_count, MPI_Datatype send_type, void* receive, int receive_count,
         MPI_Datatype receive_type, MPI_Comm comm),
        (send, send_count, send_type, receive, receive_count, receive_type, comm))

ST_BOTH(Alltoallv, Ialltoallv,
        in_place(send) ? bytes_of(total(receive_counts, comm), receive_type)
                       : bytes_of(total(send_counts, comm), send_type),
        (const void* send, const int send_counts[], const int send_offsets[],
         MPI_Datatype send_type, void* receive, const int receive_counts[],
         const int receive_offsets[], MPI_Datatype receive_type, MPI_Comm comm),
        (send, send_counts, send_offsets, send_type, receive, receive_counts, receive_offsets,
         receive_type, comm))

ST_BOTH(Alltoallw, Ialltoallw,
        in_place(send) ? total_bytes(receive_counts, receive_types, comm)
                       : total_bytes(send_counts, send_types, comm),
        (const void* send, const int send_counts[], const int send_offsets[],
         const MPI_Datatype send_types[], void* receive, const int receive_counts[],
         const int receive_offsets[], const MPI_Datatype receive_types[], MPI_Comm comm),
        (send, send_counts, send_offsets, send_types, receive, receive_counts, receive_offsets,
         receive_types, comm))

}  // extern "C"
