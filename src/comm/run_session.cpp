#include <unistd.h>

#include <chrono>
#include <csignal>
#include <new>
#include <thread>

#include "mpi_call.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/comm/session.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// One write: lines of several ranks do not mix.
void print_line(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (written <= 0) return;  // nobody is left to tell
    done += static_cast<size_t>(written);
  }
}

std::string error_line(const std::string& job, int rank, const std::string& text) {
  return "[" + job + " rank " + std::to_string(rank) + "] error: " + text;
}

// Bad input is often found by every rank at the same moment. Rank 0 prints and aborts at once; the
// others first give the ranks below them time to do so, and are then ended before they print. Who
// fails alone is heard in less than a second.
milliseconds time_for_lower_ranks(int rank, int size) {
  return milliseconds(rank == 0 ? 0 : 250 + 500 * int64_t{rank} / size);
}

int fail(Session& session, const std::string& job, const std::string& text) {
  const int rank = session.world().rank();
  const int size = session.world().size();
  if (size > 1) {
    // The launcher ends us by SIGTERM; a handler that wants to save first would be in the way.
    std::signal(SIGTERM, SIG_DFL);
    std::this_thread::sleep_for(time_for_lower_ranks(rank, size));
  }
  print_line(error_line(job, rank, text));
  if (size == 1) return kExitFailure;              // nobody waits: leave in peace
  std::this_thread::sleep_for(milliseconds(100));  // the launcher forwards the line
  session.abort(kExitFailure);
}

// The largest code of all ranks. Waits asleep: a rank that is done early must not burn the core of
// one that is not. A rank that failed gives the others a few seconds to come to the same end; they
// may be waiting for it somewhere else.
int agree_on_exit_code(Session& session, MPI_Comm comm, int code) {
  const bool failed = code != kExitDone && code != kExitRequeue;
  const auto give_up = Clock::now() + milliseconds(3000);
  int largest = code;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(&code, &largest, 1, MPI_INT, MPI_MAX, comm, &request), "MPI_Iallreduce",
            "session");
  for (;;) {
    int done = 0;
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test", "session");
    if (done) return largest;
    if (failed && Clock::now() > give_up) session.abort(code);
    std::this_thread::sleep_for(milliseconds(1));
  }
}

// The text of the exception in flight.
std::string exception_text() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown exception";
  }
}

int run_body(Session& session, const std::string& job, const std::function<int(Session&)>& body) {
  try {
    // Made before the body: afterwards, ranks may no longer be in step.
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup", "MPI_COMM_WORLD");
    MPI_Comm_set_name(comm, "session");
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    int code = body(session);
    set_ledger_phase("end");
    code = agree_on_exit_code(session, comm, code);
    MPI_Comm_free(&comm);
    return code;
  } catch (...) {
    return fail(session, job, exception_text());
  }
}

}  // namespace

int run_session(int argc, char** argv, const std::string& job,
                const std::function<int(Session&)>& body) {
  std::unique_ptr<Session> session;
  try {
    session = std::make_unique<Session>(&argc, &argv);
  } catch (...) {
    print_line("[" + job + "] error: " + exception_text());
    return kExitFailure;
  }
  return run_body(*session, job, body);
}

}  // namespace smalltalk
