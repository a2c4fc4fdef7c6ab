// What people and batch systems see when ranks fail: a clear line, a non-zero exit code, and
// nobody left waiting. Starts failing_job and failing_case under mpirun; is no MPI program itself.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

struct Outcome {
  int exit_code = -1;
  double seconds = 0;
  std::string output;

  int count(const std::string& text) const {
    int found = 0;
    for (size_t at = output.find(text); at != std::string::npos; at = output.find(text, at + 1)) {
      ++found;
    }
    return found;
  }
};

Outcome run_command(const std::string& command) {
  const auto start = std::chrono::steady_clock::now();
  Outcome outcome;
  FILE* pipe = ::popen(("timeout 60 " + command + " 2>&1").c_str(), "r");
  if (!pipe) return outcome;
  std::array<char, 4096> buffer;
  size_t count = 0;
  while ((count = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0) {
    outcome.output.append(buffer.data(), count);
  }
  const int status = ::pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 255;
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return outcome;
}

// SMALLTALK_MPIRUN, mpirun with its flags, comes from ctest; the programs from CMake.
Outcome run_under_mpirun(int ranks, const std::string& command) {
  const char* mpirun = std::getenv("SMALLTALK_MPIRUN");
  return run_command(std::string(mpirun ? mpirun : "mpirun") + " -n " + std::to_string(ranks) +
                     " " + command);
}

Outcome run_job(int ranks, const std::string& arguments) {
  return run_under_mpirun(ranks, std::string(SMALLTALK_FAILING_JOB) + " " + arguments);
}

// The barrier has no end, so that the job ends at all is most of the test.
void expect_ended(const Outcome& outcome) {
  EXPECT_NE(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(outcome.count("the barrier was left"), 0) << outcome.output;
}

TEST(Failure, OneRankThrowsWhileOthersWait) {
  const Outcome last = run_job(4, "last 'disk is full'");
  expect_ended(last);
  EXPECT_EQ(last.exit_code, kExitFailure);
  EXPECT_EQ(last.count("[break rank 3] error: disk is full\n"), 1) << last.output;

  const Outcome first = run_job(4, "first 'disk is full'");
  expect_ended(first);
  EXPECT_EQ(first.count("[break rank 0] error: disk is full\n"), 1) << first.output;
}

TEST(Failure, TheSameErrorOfAllRanksIsPrintedOnce) {
  for (const int ranks : {2, 4}) {
    const Outcome outcome = run_job(ranks, "all 'no such file'");
    expect_ended(outcome);
    EXPECT_EQ(outcome.count("no such file"), 1) << outcome.output;
    EXPECT_EQ(outcome.count("[break rank 0] error: no such file\n"), 1) << outcome.output;
  }
}

TEST(Failure, RankZeroIsHeardWhenAllFailDifferently) {
  const Outcome outcome = run_job(4, "each 'broken part '");
  expect_ended(outcome);
  EXPECT_EQ(outcome.count("[break rank 0] error: broken part 0\n"), 1) << outcome.output;
}

TEST(Failure, SomeRanksFail) {
  const Outcome outcome = run_job(4, "all-but-first 'bad score'");
  expect_ended(outcome);
  EXPECT_GE(outcome.count("[break rank 1] error: bad score\n"), 1) << outcome.output;
}

TEST(Failure, ExceptionsOfAnyKind) {
  const Outcome memory = run_job(2, "memory");
  expect_ended(memory);
  EXPECT_EQ(memory.count("[break rank 1] error: out of memory\n"), 1) << memory.output;
  const Outcome unknown = run_job(2, "unknown");
  expect_ended(unknown);
  EXPECT_EQ(unknown.count("[break rank 1] error: unknown exception\n"), 1) << unknown.output;
}

TEST(Failure, OneRankLeavesEarly) {
  expect_ended(run_job(2, "return"));
  expect_ended(run_job(2, "exit"));
  expect_ended(run_job(2, "quick-exit"));
}

TEST(Failure, TheLargestExitCodeWins) {
  EXPECT_EQ(run_job(4, "codes").exit_code, kExitRequeue);
  EXPECT_EQ(run_job(4, "done").exit_code, kExitDone);
}

TEST(Failure, StoppedMeansRequeue) {
  for (const char* how : {"stopped-last", "stopped-all", "together"}) {
    const Outcome outcome = run_job(3, how);
    EXPECT_EQ(outcome.exit_code, kExitRequeue) << how << outcome.output;
    EXPECT_EQ(outcome.count("error"), 0) << how << outcome.output;
  }
}

// A rank that sleeps, and one that the system has stopped: named by one that waits for it.
TEST(Watchdog, NamesTheRankThatHangs) {
  const Outcome hangs = run_job(3, "watched-hang");
  expect_ended(hangs);
  EXPECT_GE(hangs.count("watchdog: "), 1) << hangs.output;
  EXPECT_GE(hangs.count("rank 2"), 1) << hangs.output;

  const Outcome stopped = run_job(3, "watched-stop");
  expect_ended(stopped);
  EXPECT_GE(stopped.count("in MPI_Barrier on world for rank 2, which does not answer"), 1)
      << stopped.output;
}

TEST(Watchdog, WhoWorksIsWaitedFor) {
  for (const char* how : {"watched-slow", "watched-end"}) {
    const Outcome outcome = run_job(3, how);
    EXPECT_EQ(outcome.exit_code, kExitDone) << how << outcome.output;
    EXPECT_GT(outcome.seconds, 3) << how;
  }
}

TEST(Watchdog, AlsoOfOneRankAlone) {
  const Outcome outcome = run_command(std::string(SMALLTALK_FAILING_JOB) + " watched-hang");
  EXPECT_EQ(outcome.exit_code, kExitFailure) << outcome.output;
  EXPECT_EQ(outcome.count("no progress"), 1) << outcome.output;
}

TEST(Failure, WithoutMpirun) {
  const std::string job = SMALLTALK_FAILING_JOB;
  EXPECT_EQ(run_command(job + " done").exit_code, kExitDone);
  EXPECT_EQ(run_command(job + " codes").exit_code, kExitRequeue);
  const Outcome outcome = run_command(job + " last 'disk is full'");
  EXPECT_EQ(outcome.exit_code, kExitFailure);
  EXPECT_EQ(outcome.output, "[break rank 0] error: disk is full\n");
}

// The main of our own MPI tests: a failed check on one rank must not leave its peers waiting.
TEST(Failure, AFailedCheckEndsTheTest) {
  const Outcome outcome = run_under_mpirun(2, SMALLTALK_FAILING_CASE);
  expect_ended(outcome);
  EXPECT_GE(outcome.count("[test rank 1 of 2] FailingCase.OnTheLastRank failed at "), 1)
      << outcome.output;
}

}  // namespace
}  // namespace smalltalk
