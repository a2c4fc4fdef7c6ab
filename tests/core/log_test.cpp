#include "smalltalk/core/system/log.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "smalltalk/core/system/clock.hpp"

namespace smalltalk {
namespace {

// Puts the process's log back as it was.
class Log : public testing::Test {
 protected:
  ~Log() override {
    set_log_prefix("");
    set_log_muted(false);
  }
  template <typename F>
  std::string captured(F&& action) {
    testing::internal::CaptureStderr();
    action();
    return testing::internal::GetCapturedStderr();
  }
};

TEST_F(Log, LinesCarryThePrefix) {
  EXPECT_EQ(captured([] { log_info("hello"); }), "hello\n");
  set_log_prefix("route rank 0");
  EXPECT_EQ(captured([] { log_info("hello"); }), "[route rank 0] hello\n");
  EXPECT_EQ(captured([] { log_warning("hot"); }), "[route rank 0] warning: hot\n");
  EXPECT_EQ(captured([] { log_error("bad"); }), "[route rank 0] error: bad\n");
}

TEST_F(Log, MutedRanksPrintErrorsAlone) {
  set_log_muted(true);
  const std::string text = captured([] {
    log_info("a");
    log_warning("b");
    log_error("c");
    Progress progress("d", 1, "steps");
    progress.update(1);
  });
  EXPECT_EQ(text, "error: c\n");
}

TEST(Human, Counts) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(7), "7");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1000), "1 k");
  EXPECT_EQ(human_count(1.234e6), "1.23 M");
  EXPECT_EQ(human_count(999'999), "1 M");
  EXPECT_EQ(human_count(4.5e9), "4.5 G");
  EXPECT_EQ(human_count(2.5e21), "2.5 Z");
  EXPECT_EQ(human_count(-1500), "-1.5 k");
  EXPECT_EQ(human_count(0.25), "0.25");
}

TEST(Human, Bytes) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(1.25 * 1024 * 1024), "1.2 MiB");
  EXPECT_EQ(human_bytes(1024.0 * 1024 * 1024 - 1), "1.0 GiB");
}

TEST(Human, Durations) {
  EXPECT_EQ(human_duration(0.0123), "12 ms");
  EXPECT_EQ(human_duration(1.25), "1.2 s");
  EXPECT_EQ(human_duration(59.4), "59 s");
  EXPECT_EQ(human_duration(59.6), "1 min 0 s");
  EXPECT_EQ(human_duration(200), "3 min 20 s");
  EXPECT_EQ(human_duration(7320), "2 h 2 min");
  EXPECT_EQ(human_duration(90'000), "1 d 1 h");
  EXPECT_EQ(human_duration(std::numeric_limits<double>::infinity()), "unknown");
}

TEST(NowSeconds, NeverGoesBack) {
  const double before = now_seconds();
  EXPECT_GE(now_seconds(), before);
}

}  // namespace
}  // namespace smalltalk
