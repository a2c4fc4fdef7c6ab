// What every file of comm needs around a call of MPI: the check of its result, the datatype of a
// C++ type, and the cut of long buffers into pieces that an int can count.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace smalltalk {

// Throws Error naming the call, the communicator and MPI's reason unless result is MPI_SUCCESS.
// Communicators of ours return errors instead of ending the process, so that the line people see
// is printed by run_session.
void check_mpi(int result, const char* call, const std::string& communicator);

template <typename T>
MPI_Datatype mpi_type();
template <>
inline MPI_Datatype mpi_type<float>() {
  return MPI_FLOAT;
}
template <>
inline MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}
template <>
inline MPI_Datatype mpi_type<int64_t>() {
  return MPI_INT64_T;
}
template <>
inline MPI_Datatype mpi_type<std::byte>() {
  return MPI_BYTE;
}

// The most elements one call moves, over all ranks. Well below INT_MAX, because some algorithms
// inside MPI multiply counts as int. Tests lower it by SMALLTALK_MAX_MPI_COUNT.
int64_t max_mpi_count();

// Calls f(offset, count as int) for consecutive pieces of at most `limit` elements.
template <typename F>
void for_each_piece(int64_t total, int64_t limit, F&& f) {
  for (int64_t offset = 0; offset < total; offset += limit) {
    f(offset, static_cast<int>(std::min(limit, total - offset)));
  }
}

}  // namespace smalltalk
