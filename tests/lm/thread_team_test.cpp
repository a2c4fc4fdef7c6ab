#include "lm/cpu/thread_team.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>

namespace smalltalk {
namespace {

TEST(ThreadTeamTest, EveryThreadWorksAndWaits) {
  for (const int size : {1, 2, 5}) {
    ThreadTeam team(size);
    for (int call = 0; call < 50; ++call) {
      std::vector<int> first(static_cast<size_t>(size)), second(first);
      team.run([&](int thread) {
        first[thread] = 1;
        team.wait();
        for (const int value : first) second[thread] += value;  // all of them, after the wait
      });
      for (const int value : second) EXPECT_EQ(value, size);
    }
  }
}

TEST(ThreadTeamTest, AFailureLeavesNobodyWaiting) {
  ThreadTeam team(3);
  for (int failing = 0; failing < 3; ++failing) {
    EXPECT_THROW(team.run([&](int thread) {
      if (thread == failing) throw std::runtime_error("bad");
      team.wait();
      team.wait();
    }),
                 std::runtime_error);
    std::atomic<int> calls = 0;
    team.run([&](int) {
      team.wait();
      ++calls;
    });
    EXPECT_EQ(calls, 3);
  }
}

}  // namespace
}  // namespace smalltalk
