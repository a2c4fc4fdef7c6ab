// A test that fails on the last rank while the others wait for it; run by failure_test.cpp.
#include <gtest/gtest.h>

#include "../mpi_test.hpp"

namespace smalltalk {

TEST(FailingCase, OnTheLastRank) {
  Communicator& world = test_world();
  EXPECT_LT(world.rank(), world.size() - 1);
  if (world.rank() < world.size() - 1) world.barrier();  // for ever
}

}  // namespace smalltalk
