// A job that goes wrong in the way its first argument says; run under mpirun by failure_test.cpp.
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <new>
#include <string>
#include <thread>

#include "smalltalk/comm/session.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

constexpr double kWatchSeconds = 2;

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

void work_for(double seconds) {  // as the watchdog sees it
  for (const double end = now_seconds() + seconds; now_seconds() < end; pause()) stop_requested();
}

[[noreturn]] void sleep_for_ever() {
  for (;;) pause();
}

int fail(Session& session, const std::string& how, const std::string& what) {
  Communicator& world = session.world();
  const int last = world.size() - 1;
  if (how == "codes") return world.rank() == last ? kExitRequeue : kExitDone;
  if (how == "done") return kExitDone;
  if (how == "all") throw Error(what);
  if (how == "each") throw Error(what + std::to_string(world.rank()));
  if (how == "all-but-first" && world.rank() > 0) throw Error(what);
  if (how == "first" && world.rank() == 0) throw Error(what);
  if (how == "stopped-last" || how == "stopped-all") {
    if (how == "stopped-all" || world.rank() == last) throw Stopped();
    return kExitDone;
  }
  if (how == "together") {  // one is stopped in common work: all are
    run_together(host_collectives(world), [&] {
      if (world.rank() == last) throw Stopped();
    });
    return kExitDone;
  }
  if (how.starts_with("watched")) session.watch(kWatchSeconds);
  if (how == "watched-end") {  // who is done early waits for a slow one, longer than the limit
    if (world.rank() == last) work_for(3 * kWatchSeconds);
    return kExitDone;
  }
  if (how == "watched-slow") {
    if (world.rank() == last) work_for(3 * kWatchSeconds);
    world.barrier();
    return kExitDone;
  }
  if (world.rank() == last) {
    if (how == "watched-hang") sleep_for_ever();
    if (how == "watched-stop") {
      raise(SIGSTOP);
      sleep_for_ever();  // mpirun wakes it before it kills it
    }
    if (how == "last") throw Error(what);
    if (how == "memory") throw std::bad_alloc();
    if (how == "unknown") throw 42;
    if (how == "return") return kExitUsage;
    if (how == "exit") std::exit(0);
    if (how == "quick-exit") std::quick_exit(0);
  }
  world.barrier();  // for ever
  std::cerr << "the barrier was left\n";
  return kExitDone;
}

}  // namespace
}  // namespace smalltalk

int main(int argc, char** argv) {
  const std::string how = argc > 1 ? argv[1] : "";
  const std::string what = argc > 2 ? argv[2] : "";
  return smalltalk::run_session(argc, argv, "break", [&](smalltalk::Session& session) {
    return smalltalk::fail(session, how, what);
  });
}
