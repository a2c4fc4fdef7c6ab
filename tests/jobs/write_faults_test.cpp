// A disk that is full or broken at the n-th call: one error that says what and why, nothing half
// done under a final name, and the same command again ends as if nothing had been.
// SMALLTALK_WRITE_FAULTS=all tries every n; else a spread of them.
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

// About `count` of calls 1 to `size`, evenly spread, or all of them; alternately on a full and on a
// broken disk.
std::vector<Fault> spread(size_t size, size_t count) {
  if (every_call()) count = size;
  std::vector<Fault> faults;
  for (size_t i = 0; i < count; ++i) {
    faults.push_back({(2 * i + 1) * size / (2 * count) + 1, i % 2 == 0 ? ENOSPC : EIO});
  }
  return faults;
}

struct Stage {
  const char* job;
  const char* arguments;
  size_t faults;
};
// In an order in which each finds what it needs.
const std::vector<Stage> kStages = {{"prepare", "", 3},         {"route", "", 3},
                                    {"shard", "", 3},           {"train", "--expert 0", 3},
                                    {"train", "--expert 1", 0}, {"evaluate", "", 3}};

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
    std::vector<std::string> all;
    if (!fs::exists(log())) return all;
    std::istringstream lines(read_text(log()));
    for (std::string line; std::getline(lines, line);) all.push_back(line);
    return all;
  }

  void expect_one_error(const Outcome& outcome, const Fault& fault, const std::string& call) const {
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, std::strerror(fault.error)), 1) << outcome.output;
    // A disk that stays full may be noticed elsewhere before a write in the background ends.
    const std::string named = fault.error == ENOSPC ? run().string() : final_name(call);
    EXPECT_GE(count_of(outcome.output, named), 1) << outcome.output;
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

  // Of the second one of a training: it never costs the first. Every third call, and the last two,
  // after which it has its name; or every call in both ways.
  void try_the_calls_of_a_checkpoint(const std::string& arguments) const {
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
      if (!every_call() && call % 3 != 0 && call + 2 <= size) continue;
      for (const int error : {ENOSPC, EIO}) {
        if (!every_call() && error != (call % 2 == 0 ? ENOSPC : EIO)) continue;
        go_back_to("first checkpoint");
        expect_harmless({call, error}, arguments, counted);
        if (call % 9 == 0 || call + 2 > size || every_call()) {
          expect_rerun_ends_the_same(arguments);
        }
      }
    }
  }

  // The state before a stage as "before", that after it as "after".
  void run_up_to(const Stage& stage) {
    for (const Stage& earlier : kStages) {
      if (&earlier == &stage) break;
      ASSERT_EQ(run_alone(job(earlier.job, earlier.arguments)).exit_code, 0) << earlier.job;
    }
    fs::create_directories(run());
    keep_as("before");
    const Outcome undisturbed = run_with({}, job(stage.job, stage.arguments), run().string());
    ASSERT_EQ(undisturbed.exit_code, 0) << undisturbed.output;
    keep_as("after");
  }

  fs::path log() const { return folder_ / "calls.txt"; }
};

class OfAStage : public WriteFaults, public testing::WithParamInterface<size_t> {};

TEST_P(OfAStage, EndInOneErrorAndARerunEndsTheSame) {
  const Stage& stage = kStages[GetParam()];
  run_up_to(stage);
  const std::string arguments = job(stage.job, stage.arguments);
  for (const Fault& fault : spread(calls().size(), stage.faults)) {
    go_back_to("before");
    expect_harmless(fault, arguments, run().string());
    expect_rerun_ends_the_same(arguments);
  }
}

INSTANTIATE_TEST_SUITE_P(WriteFaults, OfAStage, testing::Values(0, 1, 2, 3, 5),
                         [](const auto& index) { return std::string(kStages[index.param].job); });

TEST_F(WriteFaults, OfACheckpointCostNeitherItNorTheOneBefore) {
  const Stage& train = kStages[3];
  run_up_to(train);
  go_back_to("before");
  try_the_calls_of_a_checkpoint(job(train.job, train.arguments));
}

}  // namespace
}  // namespace smalltalk
