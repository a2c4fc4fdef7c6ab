#include "mpi_call.hpp"

#include <cstdlib>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

void check_mpi(int result, const char* call, const std::string& communicator) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error(std::string(call) + " failed on communicator \"" + communicator + "\": " + text);
}

int64_t max_mpi_count() {
  static const int64_t count = [] {
    const char* text = std::getenv("SMALLTALK_MAX_MPI_COUNT");
    const int64_t asked = text ? std::atoll(text) : 0;
    return asked > 0 ? std::min<int64_t>(asked, 1 << 30) : int64_t{1} << 28;
  }();
  return count;
}

}  // namespace smalltalk
