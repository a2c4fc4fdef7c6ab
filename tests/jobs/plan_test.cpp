// What `launch --dry-run` says of a world that is not there, from one process without mpirun.
#include <gtest/gtest.h>

#include <cmath>
#include <regex>
#include <set>

#include "job_runner.hpp"
#include "smalltalk/core/experiment/sweep.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class Plan : public JobTest {
 protected:
  // In a folder without any text.
  Outcome plan(const std::string& arguments) const {
    fs::create_directories(folder_ / "nowhere");
    return run_alone(arguments, "-C " + (folder_ / "nowhere").string());
  }
  // The value behind a name in the estimate.
  static std::string value(const std::string& output, const std::string& name) {
    std::smatch found;
    const std::regex line("\n  +(" + name + ") {2,}([^\n]*)\n");
    return std::regex_search(output, found, line) ? found[found.size() - 1].str() : "";
  }
};

// Of a number with a prefix, such as "1.35 E".
double number(const std::string& text) {
  size_t end = 0;
  const double digits = std::stod(text, &end);
  const size_t thousands = end + 1 < text.size() ? std::string(" kMGTPEZ").find(text[end + 1]) : 0;
  return digits * std::pow(1000.0, static_cast<double>(thousands));
}

TEST_F(Plan, EveryExperimentOfTheProject) {
  const fs::path jobs = fs::path(from_environment("SMALLTALK_SOURCE_DIR")) / "jobs";
  const std::string world = " --out run --dry-run --world 256 --nodes 32";
  int planned = 0;
  for (const auto& entry : fs::directory_iterator(jobs)) {
    if (entry.path().extension() != ".toml") continue;
    std::set<std::string> commands;  // runs that differ in their seeds are planned alike
    const bool is_sweep = entry.path().filename().string().starts_with("sweep");
    if (is_sweep) {
      const Sweep sweep = load_sweep(entry.path());
      for (const SweepRun& run : sweep.runs) {
        std::string command = "launch " + (jobs.parent_path() / sweep.experiment).string();
        for (const std::string& key : run.overrides) {
          if (!key.starts_with("seed=")) command += " --set '" + key + "'";
        }
        commands.insert(command);
      }
    } else {
      commands.insert("launch " + entry.path().string());
    }
    for (const std::string& command : commands) {
      const Outcome outcome = plan(command + world);
      ++planned;
      EXPECT_EQ(outcome.exit_code, 1) << command << outcome.output;  // its text is not here
      EXPECT_EQ(count_of(outcome.output, "256 ranks on 32 nodes"), 1) << command << outcome.output;
      EXPECT_EQ(count_of(outcome.output, "error: "), 1) << command << outcome.output;
      EXPECT_EQ(count_of(outcome.output, "error: data.train: "), 1) << command << outcome.output;
      for (const char* name : {"FLOPs, experts", "memory per device, (an expert|Dense|Lory)",
                               "disk", "scores sent by each rank", "time"}) {
        EXPECT_NE(value(outcome.output, name), "") << name << " of " << command << outcome.output;
      }
      if (is_sweep) continue;
      // What a file of the papers' sizes says at its top.
      const std::string text = read_text(entry.path());
      std::smatch said;
      const bool lory = count_of(outcome.output, "memory per device, Lory") > 0;
      if (std::regex_search(text, said, std::regex("# FLOPs: +(experts|models) ([0-9.e+]+)"))) {
        const double flops = number(value(
            outcome.output, said[1] == "experts" ? "FLOPs, experts" : "FLOPs, all other models"));
        EXPECT_NEAR(flops / std::stod(said[2]), 1, 0.01) << command << outcome.output;
      }
      if (std::regex_search(text, said, std::regex("# Memory: +([0-9]+) GiB per device"))) {
        const std::string memory = value(
            outcome.output, lory ? "memory per device, Lory" : "memory per device, an expert");
        EXPECT_NEAR(std::stod(memory), std::stod(said[1]), 0.5) << command << outcome.output;
        EXPECT_TRUE(memory.ends_with(" GiB")) << command << outcome.output;
      }
    }
  }
  EXPECT_GE(planned, 12);
  EXPECT_FALSE(fs::exists(folder_ / "nowhere/run"));
}

TEST_F(Plan, IsThatOfTheWorldItself) {
  const Outcome there = run_job(4, launch("run", "--dry-run"));
  const Outcome planned = plan(launch("run", "--dry-run --world 4"));
  EXPECT_EQ(there.exit_code, 0) << there.output;
  EXPECT_EQ(planned.output, there.output);
}

TEST_F(Plan, MoreRanksTakeLessTime) {
  const std::string rate = "--dry-run --set device.flops_per_second=1e6 --world ";
  const auto rows = [&](const std::string& world) {
    const Outcome outcome = plan(launch("run", rate + world));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    return outcome.output;
  };
  const std::string one = rows("1"), four = rows("4"), uneven = rows("10 --nodes 4");
  for (const char* same : {"FLOPs, experts", "FLOPs, sharding", "training sequences"}) {
    EXPECT_EQ(value(one, same), value(four, same));
  }
  EXPECT_NE(value(one, "time"), value(four, "time"));
  // Three ranks on each of the first two nodes, two on the others.
  EXPECT_EQ(count_of(uneven, "10 ranks on 4 nodes"), 1) << uneven;
  EXPECT_EQ(std::regex_search(uneven, std::regex("\n2 +0 .*\n3 +1 .*\n4 +1 .*\n5 +1 .*\n6 +2 ")),
            true)
      << uneven;
}

// On a GPU, of which this machine need not have one.
TEST_F(Plan, NeedsNoGpu) {
  const Outcome outcome = plan(launch("run",
                                      "--dry-run --world 8 --nodes 2 --set device.device=cuda "
                                      "--set device.precision=bf16-mixed"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "8 ranks on 2 nodes"), 1) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "warning"), 0) << outcome.output;
  // In the world that was started, one that is missing is told.
  EXPECT_EQ(plan(launch("run", "--dry-run --set device.device=cuda")).exit_code, 0);
}

TEST_F(Plan, NonsenseIsRefused) {
  for (const auto& [arguments, said] :
       {std::pair{"--world 4", "--dry-run"},
        {"--nodes 2", "--world"},
        {"--dry-run --nodes 2", "--world"},
        {"--dry-run --world 0", "--world"},
        {"--dry-run --world -3", "--world"},
        {"--dry-run --world 4 --nodes 0", "--nodes"},
        {"--dry-run --world 4 --nodes 5", "5 nodes are more than the 4 ranks"}}) {
    const Outcome outcome = plan(launch("run", arguments));
    EXPECT_EQ(outcome.exit_code, 2) << arguments << outcome.output;
    EXPECT_EQ(count_of(outcome.output, said), 1) << arguments << outcome.output;
  }
  // A world too small for what the experiment asks for.
  const Outcome groups = plan(launch("run", "--dry-run --world 2 --set mixture.group_size=4"));
  EXPECT_EQ(groups.exit_code, 1) << groups.output;
  EXPECT_EQ(count_of(groups.output, "exceeds the world of 2 ranks"), 1) << groups.output;
}

}  // namespace
}  // namespace smalltalk
