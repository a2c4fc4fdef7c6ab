// Requests to stop, wherever they come from, and what ranks agree on.
#include "smalltalk/core/system/stop.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdlib>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

class StopTest : public testing::Test {
 protected:
  void TearDown() override { watch_for_stop({}); }
  TemporaryFolder folder_;
};

TEST(SlurmDuration, InAllForms) {
  EXPECT_EQ(parse_slurm_duration("1-02:03:04\n"), 86400 + 2 * 3600 + 3 * 60 + 4);
  EXPECT_EQ(parse_slurm_duration("12:34:56"), 12 * 3600 + 34 * 60 + 56);
  EXPECT_EQ(parse_slurm_duration("59:00"), 59 * 60);
  EXPECT_EQ(parse_slurm_duration("7"), 7);
  EXPECT_EQ(parse_slurm_duration("365-00:00:00"), 365 * 86400);
  for (const char* text : {"UNLIMITED", "NOT_SET", "INVALID", "", "\n", ":", "1:", "1-", "-1",
                           "1.5", "1:2:3:4", "1-2-3", "9999999999", " 1"}) {
    EXPECT_FALSE(parse_slurm_duration(text)) << text;
  }
}

TEST(Signals, ByTheirNames) {
  EXPECT_EQ(parse_signals("USR1,SIGUSR2,TERM"), (std::vector<int>{SIGUSR1, SIGUSR2, SIGTERM}));
  EXPECT_TRUE(parse_signals("").empty());
  EXPECT_TRUE(parse_signals("none").empty());
  EXPECT_THROW(parse_signals("USR1,KILL"), Error);
}

TEST_F(StopTest, ASignalIsRemembered) {
  EXPECT_EXIT(
      {
        catch_stop_signals(parse_signals("USR2"));
        const bool before = stop_requested();
        std::raise(SIGUSR2);
        const bool after = stop_requested() && stop_reason() == "SIGUSR2";
        std::_Exit(!before && after ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
  EXPECT_EXIT(
      {
        catch_stop_signals(parse_signals("USR1"));
        std::raise(SIGUSR2);  // not ours: it does what it always does
      },
      testing::KilledBySignal(SIGUSR2), "");
}

TEST_F(StopTest, TheFileOfAnEarlierStartDoesNotCount) {
  const auto file = folder_.path() / "stop";
  write_text_atomically(file, "");
  watch_for_stop({file, {}, INFINITY});
  EXPECT_FALSE(stop_requested());
  watch_for_stop({folder_.path() / "other", {}, INFINITY});
  write_text_atomically(folder_.path() / "other", "");
  EXPECT_TRUE(stop_requested());
  EXPECT_EQ(stop_reason(), (folder_.path() / "other").string());
}

TEST_F(StopTest, TheFirstRankThatIsAskedTellsTheOthers) {
  const auto bell = folder_.path() / "queue" / "stop";
  watch_for_stop({{}, bell, now_seconds() - 1});
  EXPECT_TRUE(stop_requested());
  ASSERT_TRUE(std::filesystem::exists(bell));
  EXPECT_EQ(read_text(bell), "the end of the time limit\n");
  watch_for_stop({{}, bell, INFINITY});  // as another rank
  EXPECT_TRUE(stop_requested());
}

TEST_F(StopTest, OnceTrueAlwaysTrue) {
  watch_for_stop({{}, {}, now_seconds() - 1});
  EXPECT_TRUE(stop_requested());
  EXPECT_TRUE(stop_requested());
  watch_for_stop({});
  EXPECT_FALSE(stop_requested());
  EXPECT_LT(seconds_since_poll(), 60);
}

TEST(RunTogether, OneThatIsStoppedStopsAll) {
  for (const int stopping : {-1, 0, 2}) {
    std::atomic<int> stopped = 0;
    run_thread_ranks(3, [&](const HostCollectives& ranks) {
      try {
        run_together(ranks, [&] {
          if (ranks.rank == stopping) throw Stopped();
        });
      } catch (const Stopped&) {
        ++stopped;
      }
    });
    EXPECT_EQ(stopped, stopping < 0 ? 0 : 3);
  }
}

TEST(RunTogether, ErrorsPass) {
  EXPECT_THROW(run_together({}, [] { throw Error("broken"); }), Error);
}

}  // namespace
}  // namespace smalltalk
