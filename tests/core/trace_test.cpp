#include "smalltalk/core/system/trace.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <thread>

#include "smalltalk/core/system/clock.hpp"

namespace smalltalk {
namespace {

// The text after "key": in an event, which is a line of the file.
std::string field(const std::string& event, const std::string& key) {
  const size_t at = event.find("\"" + key + "\":");
  if (at == std::string::npos) return "";
  const size_t begin = at + key.size() + 3;
  return event.substr(begin, event.find_first_of(",}", begin) - begin);
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

TEST(TraceTest, SpansNestAndKnowTheirThread) {
  { const TraceSpan before("before"); }
  start_trace();
  {
    const TraceSpan outer("step", int64_t{7});
    sleep_ms(2);
    {
      const TraceSpan inner("inner");
      sleep_ms(5);
    }
    std::thread([] {
      const TraceSpan span("other");
      sleep_ms(1);
    }).join();
    std::thread([] { const TraceSpan span("another"); }).join();
  }
  const std::string events = stop_trace(3);
  { const TraceSpan after("after"); }

  std::istringstream trace(trace_json(events + ",\n" + stop_trace(4)));
  std::map<std::string, std::string> spans;
  size_t processes = 0;
  for (std::string line; std::getline(trace, line);) {
    if (field(line, "ph") == "\"M\"") ++processes;
    if (field(line, "ph") != "\"X\"") continue;
    EXPECT_EQ(field(line, "pid"), "3");
    spans[field(line, "name")] = line;
  }
  EXPECT_EQ(processes, 2U);
  ASSERT_EQ(spans.size(), 4U);
  const auto number = [&](const std::string& name, const char* key) {
    return std::strtod(field(spans.at("\"" + name + "\""), key).c_str(), nullptr);
  };
  const auto begin = [&](const char* name) { return number(name, "ts"); };
  const auto length = [&](const char* name) { return number(name, "dur"); };
  EXPECT_GE(begin("inner"), begin("step 7") + 2000);  // microseconds
  EXPECT_GE(length("inner"), 5000);
  EXPECT_LE(begin("inner") + length("inner"), begin("step 7") + length("step 7"));
  EXPECT_EQ(number("step 7", "tid"), 0);
  EXPECT_EQ(number("inner", "tid"), 0);
  EXPECT_EQ(number("other", "tid"), 1);
  EXPECT_EQ(number("another", "tid"), 1);  // the first thread has ended
}

TEST(TraceTest, SecondsAreAddedWithoutARecording) {
  double seconds = 1;
  const double start = now_seconds();
  {
    const TraceSpan span("work", seconds);
    sleep_ms(10);
  }
  EXPECT_GE(seconds, 1.01);
  EXPECT_LE(seconds, 1 + now_seconds() - start);
}

TEST(TraceTest, ASecondTraceHoldsOnlyItsOwn) {
  start_trace();
  { const TraceSpan span("old"); }
  start_trace();
  { const TraceSpan span("new"); }
  const std::string events = stop_trace(0);
  EXPECT_EQ(events.find("old"), std::string::npos);
  EXPECT_NE(events.find("new"), std::string::npos);
}

}  // namespace
}  // namespace smalltalk
