#include <chrono>
#include <iostream>
#include <new>
#include <thread>

#include "mpi_call.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/comm/session.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

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

int run_body(Session& session, const std::function<int(Session&)>& body) {
  try {
    // Made before the body: afterwards, ranks may no longer be in step.
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup", "MPI_COMM_WORLD");
    MPI_Comm_set_name(comm, "session");
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    int code = kExitRequeue;
    try {
      code = body(session);
    } catch (const Stopped&) {  // all is saved
    }
    session.rest();
    set_ledger_phase(Phase::end);
    code = agree_on_exit_code(session, comm, code);
    MPI_Comm_free(&comm);
    if (code == kExitRequeue && session.world().rank() == 0) {
      log_info("everything is saved: the same command goes on from here");
    }
    return code;
  } catch (...) {
    session.report_failure(exception_text());
    if (session.world().size() > 1) session.abort(kExitFailure);
    return kExitFailure;  // nobody waits: leave in peace
  }
}

}  // namespace

int run_session(int argc, char** argv, const std::string& job,
                const std::function<int(Session&)>& body) {
  std::unique_ptr<Session> session;
  try {
    session = std::make_unique<Session>(&argc, &argv, job);
  } catch (...) {
    std::cerr << "[" + job + "] error: " + exception_text() + "\n";
    return kExitFailure;
  }
  return run_body(*session, body);
}

}  // namespace smalltalk
