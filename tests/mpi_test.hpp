// For tests that run under mpirun; linked with mpi_test_main.cpp. A failure on any rank is printed
// with its rank and ends all of them, so that none hangs in a collective.
#pragma once

#include "smalltalk/comm/session.hpp"

namespace smalltalk {

// The session of this test program, up from before the first test until after the last.
Session& test_session();
inline Communicator& test_world() { return test_session().world(); }

}  // namespace smalltalk
