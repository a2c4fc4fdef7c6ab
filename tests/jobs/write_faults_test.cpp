// A disk that is full or broken at the n-th call: one error that says what and why, nothing half
// done under a final name, and the same command again ends as if nothing had been.
// SMALLTALK_WRITE_FAULTS=all tries every n with both; else a spread of them.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>

#include "fault_runner.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

struct Fault {
  size_t call = 0;  // from 1; 0: none, calls are only counted
  int error = 0;
};

bool every_call() {
  const char* choice = std::getenv("SMALLTALK_WRITE_FAULTS");
  return choice != nullptr && std::string(choice) == "all";
}

// About `count` of calls 1 to `size`, evenly spread, alternately on a full and on a broken disk; or
// all of them on both.
std::vector<Fault> spread(size_t size, size_t count) {
  std::vector<Fault> faults;
  for (size_t i = 0; i < count && !every_call(); ++i) {
    faults.push_back({(2 * i + 1) * size / (2 * count) + 1, i % 2 == 0 ? ENOSPC : EIO});
  }
  for (size_t call = 1; call <= size && every_call(); ++call) {
    faults.push_back({call, ENOSPC});
    faults.push_back({call, EIO});
  }
  return faults;
}

class WriteFaults : public FaultTest {
 protected:
  // A full disk stays full, and takes a part of what did not fit; a broken one fails once.
  Outcome run_with(const Fault& fault, const std::string& arguments,
                   const std::string& counted) const {
    fs::remove(log());
    std::string environment = "LD_PRELOAD=" SMALLTALK_FAULT_SHIM " SMALLTALK_FAULT_IN=" + counted +
                              " SMALLTALK_FAULT_LOG=" + log().string();
    if (fault.call > 0) {
      environment +=
          " SMALLTALK_FAULT_CALL=" + std::to_string(fault.call) +
          " SMALLTALK_FAULT_ERRNO=" + std::to_string(fault.error) +
          (fault.error == ENOSPC ? " SMALLTALK_FAULT_SHORT=1" : " SMALLTALK_FAULT_ONCE=1");
    }
    return run_alone(arguments, environment);
  }

  std::vector<std::string> calls() const {
    std::istringstream lines(read_text(log()));
    std::vector<std::string> all;
    for (std::string line; std::getline(lines, line);) all.push_back(line);
    return all;
  }

  static void expect_one_error(const Outcome& outcome, const Fault& fault,
                               const std::string& call) {
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, std::strerror(fault.error)), 1) << outcome.output;
    EXPECT_GE(count_of(outcome.output, final_name(call)), 1) << outcome.output;
    for (const char* garbage : {"HDF5-DIAG", "terminate called", "internal error"}) {
      EXPECT_EQ(count_of(outcome.output, garbage), 0) << outcome.output;
    }
  }

  // Of the file that a call was about: ".tmp-<host>-<process>-<counter>-<name>" will be "<name>".
  static std::string final_name(const std::string& call) {
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    const std::string prefix = ".tmp-" + std::string(host.data()) + "-";
    const std::string name = fs::path(call).filename().string();
    if (!name.starts_with(prefix)) return name;
    const size_t counter = name.find('-', prefix.size()) + 1;
    return name.substr(name.find('-', counter) + 1);
  }

  // The job fails and says why, or does without the call that failed once (HDF5 opens a file
  // twice). Whatever has its final name is what it was before, or what it is to become.
  void expect_harmless(const Fault& fault, const std::string& arguments,
                       const std::string& counted) const {
    const Outcome outcome = run_with(fault, arguments, counted);
    ASSERT_GE(calls().size(), fault.call) << outcome.output;
    const std::string call = calls()[fault.call - 1];
    SCOPED_TRACE("call " + std::to_string(fault.call) + ", " + call + ": " +
                 std::strerror(fault.error));
    if (fault.error == EIO && outcome.exit_code == 0) {
      EXPECT_EQ(differences(outputs_of(run()), outputs_of(folder_ / "after")),
                std::vector<std::string>());
    } else {
      expect_one_error(outcome, fault, call);
    }
    EXPECT_EQ(temporaries_in(run()), std::vector<std::string>());
    const Files before = outputs_of(folder_ / "before"), after = outputs_of(folder_ / "after");
    for (const auto& [name, contents] : outputs_of(run())) {
      if (!is_binary(name)) continue;
      const bool old = before.contains(name) && before.at(name) == contents;
      const bool made = after.contains(name) && after.at(name) == contents;
      EXPECT_TRUE(old || made) << name << " is half done";
    }
  }

  void expect_rerun_ends_the_same(const std::string& arguments) const {
    const Outcome outcome = run_alone(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_EQ(differences(outputs_of(run()), outputs_of(folder_ / "after")),
              std::vector<std::string>());
  }

  // Of the second one of a training: it never costs the first.
  void try_every_call_of_a_checkpoint(const std::string& arguments) const {
    const std::string counted = "/checkpoints";
    ASSERT_EQ(run_with({}, arguments, counted).exit_code, 0);
    const std::vector<std::string> both = calls();
    const auto second = std::find_if(both.begin(), both.end(), [](const std::string& call) {
      return call.find("step-00000008") != std::string::npos;
    });
    ASSERT_NE(second, both.end());
    go_back_to("before");
    expect_harmless({static_cast<size_t>(second - both.begin()) + 1, EIO}, arguments, counted);
    keep_as("first checkpoint");
    const auto size = static_cast<size_t>(both.end() - second);
    for (size_t call = 1; call <= size; ++call) {
      go_back_to("first checkpoint");
      expect_harmless({call, call % 2 == 0 ? ENOSPC : EIO}, arguments, counted);
      if (call % 10 == 0 || call + 2 > size || every_call()) expect_rerun_ends_the_same(arguments);
    }
  }

  fs::path log() const { return folder_ / "calls.txt"; }
};

TEST_F(WriteFaults, EndInOneErrorAndARerunEndsTheSame) {
  struct Stage {
    std::string job, arguments;
    size_t faults;
  };
  for (const Stage& stage : std::vector<Stage>{{"prepare", "", 3},
                                               {"route", "", 3},
                                               {"shard", "", 3},
                                               {"train", "--expert 0", 3},
                                               {"train", "--expert 1", 0},
                                               {"evaluate", "", 3}}) {
    SCOPED_TRACE(stage.job);
    const std::string arguments = job(stage.job, stage.arguments);
    fs::create_directories(run());
    keep_as("before");
    const Outcome undisturbed = run_with({}, arguments, run().string());
    ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.output;
    keep_as("after");
    const size_t size = calls().size();
    if (stage.faults == 0) continue;
    for (const Fault& fault : spread(size, stage.faults)) {
      go_back_to("before");
      expect_harmless(fault, arguments, run().string());
      expect_rerun_ends_the_same(arguments);
    }
    if (stage.arguments == "--expert 0") {
      go_back_to("before");
      try_every_call_of_a_checkpoint(arguments);
    }
    go_back_to("after");
  }
}

}  // namespace
}  // namespace smalltalk
