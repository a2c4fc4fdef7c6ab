#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <thread>

#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

std::string captured(const std::function<void()>& action) {
  testing::internal::CaptureStderr();
  action();
  return testing::internal::GetCapturedStderr();
}

// What `action` prints when stderr is a terminal of 60 columns.
std::string on_a_terminal(const std::function<void()>& action) {
  int controller = -1;
  int terminal = -1;
  winsize size{};
  size.ws_col = 60;
  size.ws_row = 10;
  if (::openpty(&controller, &terminal, nullptr, nullptr, &size) != 0) return "no terminal";
  const int saved = ::dup(STDERR_FILENO);
  ::dup2(terminal, STDERR_FILENO);
  action();
  ::dup2(saved, STDERR_FILENO);
  ::close(saved);
  // A terminal hands out its text in pieces.
  ::fcntl(controller, F_SETFL, O_NONBLOCK);
  std::string text;
  std::array<char, 4000> buffer{};
  for (ssize_t count = 0; (count = ::read(controller, buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(count));
  }
  ::close(terminal);
  ::close(controller);
  return text;
}

TEST(Progress, InALogFileShortWorkIsOneLine) {
  const std::string text = captured([] {
    Progress progress("scoring", 2000, "sequences");
    for (int i = 1; i <= 2000; ++i) progress.update(i, "loss 3.5");
  });
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_EQ(text.find("scoring: 2 k sequences in "), 0U) << text;
  EXPECT_NE(text.find("sequences/s"), std::string::npos) << text;
  EXPECT_NE(text.find("loss 3.5\n"), std::string::npos) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos) << text;
}

TEST(Progress, SaysWhereItStopped) {
  const std::string text = captured([] {
    Progress progress("training", 100, "steps");
    progress.update(30);
  });
  EXPECT_EQ(text.find("training: stopped at 30 of 100 steps after "), 0U) << text;
}

TEST(Progress, OfNothingIsDone) {
  const std::string text = captured([] { const Progress progress("nothing", 0, "files"); });
  EXPECT_EQ(text.find("nothing: 0 files in "), 0U) << text;
}

TEST(Progress, OnATerminalDrawsABarAtMostTenTimesASecond) {
  const std::string text = on_a_terminal([] {
    Progress progress("training", 1000, "steps");
    for (int i = 1; i <= 5; ++i) {
      for (int j = 0; j < 100; ++j) progress.update(100 * i);
      std::this_thread::sleep_for(std::chrono::milliseconds(60));
    }
    log_info("a line");
    progress.update(1000, "a note that is far too long for a terminal of sixty columns");
  });
  const auto bars =
      std::count(text.begin(), text.end(), '#') > 0 ? std::count(text.begin(), text.end(), '%') : 0;
  EXPECT_GE(bars, 1) << text;
  EXPECT_LE(bars, 5) << text;  // about 0.3 s
  // A log line wipes the bar first.
  EXPECT_NE(text.find("\r\033[Ka line"), std::string::npos) << text;
  EXPECT_NE(text.find("training: 1 k steps in "), std::string::npos) << text;
}

TEST(Progress, ABarIsAsFullAsTheWork) {
  const auto bar_at = [](int64_t done) {
    const std::string text = on_a_terminal([done] {
      Progress progress("training", 8, "steps");
      std::this_thread::sleep_for(std::chrono::milliseconds(120));  // too soon, nothing is drawn
      progress.update(done);
    });
    const size_t begin = text.find('[');
    return begin == std::string::npos ? text : text.substr(begin, text.find(']') + 1 - begin);
  };
  EXPECT_EQ(bar_at(0), "[....................]");
  EXPECT_EQ(bar_at(2), "[#####...............]");
  EXPECT_EQ(bar_at(6), "[###############.....]");
}

TEST(Progress, ResumedWorkDoesNotCountForTheRate) {
  constexpr int64_t kBefore = 1'000'000'000'000;
  const std::string text = captured([] {
    Progress progress("training", kBefore + 1'000'000, "steps");
    progress.update(kBefore);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    progress.update(kBefore + 1'000'000);
  });
  // A million steps since it went on, in 50 ms or, on a busy machine, in some seconds.
  EXPECT_TRUE(text.find(" M steps/s") != std::string::npos ||
              text.find(" k steps/s") != std::string::npos)
      << text;
}

}  // namespace
}  // namespace smalltalk
