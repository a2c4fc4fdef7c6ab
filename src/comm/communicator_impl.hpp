// The handle behind a Communicator; shared by its source files and the session.
#pragma once

#include <string>
#include <vector>

#include "mpi_call.hpp"
#include "smalltalk/comm/session.hpp"
#include "waits.hpp"

namespace smalltalk {

struct Communicator::Impl {
  // Takes ownership of `handle` and names it, for the ledger and for MPI's own messages.
  Impl(MPI_Comm handle, const std::string& name);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // To be held while a collective lasts.
  Wait waiting(const char* call) const { return {name, members, call}; }
  void check(int result, const char* call) const { check_mpi(result, call, name); }

  MPI_Comm comm;
  std::string name;
  int rank = 0;
  int size = 1;
  std::vector<int> members;  // their ranks in the world
};

// values <- op over the ranks of comm: one call of MPI for all but huge buffers.
template <typename T>
void all_reduce_pieces(MPI_Comm comm, const std::string& name, std::span<T> values, MPI_Op op) {
  const auto total = static_cast<int64_t>(values.size());
  for_each_piece(total, max_mpi_count(), [&](int64_t offset, int count) {
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, values.data() + offset, count, mpi_type<T>(), op, comm),
              "MPI_Allreduce", name);
  });
}

// values <- sum over the ranks of comm. For three ranks and more the sum is taken in rank order by
// code of ours, so that its bits depend on the number of ranks and on nothing else: not on how they
// are spread over nodes, not on which algorithm MPI picks. Moves what a ring all-reduce moves.
// Memory: a buffer of at most 16 MiB (float).
template <typename T>
void all_reduce_in_rank_order(MPI_Comm comm, const std::string& name, std::span<T> values);

}  // namespace smalltalk
