// A job that goes wrong in the way its first argument says; run under mpirun by failure_test.cpp.
#include <cstdlib>
#include <iostream>
#include <new>
#include <string>

#include "smalltalk/comm/session.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {
namespace {

int fail(Session& session, const std::string& how, const std::string& what) {
  Communicator& world = session.world();
  const int last = world.size() - 1;
  if (how == "codes") return world.rank() == last ? kExitRequeue : kExitDone;
  if (how == "done") return kExitDone;
  if (how == "all") throw Error(what);
  if (how == "each") throw Error(what + std::to_string(world.rank()));
  if (how == "all-but-first" && world.rank() > 0) throw Error(what);
  if (how == "first" && world.rank() == 0) throw Error(what);
  if (world.rank() == last) {
    if (how == "last") throw Error(what);
    if (how == "memory") throw std::bad_alloc();
    if (how == "unknown") throw 42;
    if (how == "return") return kExitUsage;
    if (how == "exit") std::exit(0);
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
