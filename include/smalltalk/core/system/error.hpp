// Errors. Everything that is the world's fault (a missing file, a wrong key, a full disk) is
// thrown as Error with a text that names the file, key or rank and says what to do next. It is
// caught in run_session() alone, inside the MPI session, so that no rank is ever left waiting, or
// in jobs of one process by run_alone().
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace smalltalk {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what) : std::runtime_error(what) {}
};

// The system refused a call on a file, which says nothing about what the file holds.
class SystemError : public Error {
 public:
  using Error::Error;
};

// Text of a file as an Error may quote it: on one line of at most some 200 bytes, control bytes
// spelled out.
std::string printable(std::string_view text);

// Exit codes of the program, for batch systems to act on.
inline constexpr int kExitDone = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitRequeue = 75;  // saved, start me again (EX_TEMPFAIL of sysexits.h)

// States an invariant of our own code; a failure is a bug, not bad input.
#define ST_CHECK(condition)                                                      \
  do {                                                                           \
    if (!(condition)) ::smalltalk::check_failed(#condition, __FILE__, __LINE__); \
  } while (false)

[[noreturn]] inline void check_failed(const char* condition, const char* file, int line) {
  throw Error(std::string("internal error: ") + condition + " does not hold (" + file + ":" +
              std::to_string(line) + ")");
}

}  // namespace smalltalk
