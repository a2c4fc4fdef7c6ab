// What else happens to runs: folders that are moved, clocks that jump, disks that fill up, damaged
// checkpoints, two jobs at once.
#include <gtest/gtest.h>

#include <cerrno>
#include <cmath>
#include <ctime>

#include "fault_runner.hpp"
#include "started_job.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

constexpr const char* kShim = "LD_PRELOAD=" SMALLTALK_FAULT_SHIM;

class Fault : public FaultTest {
 protected:
  void expect_outputs(const Files& expected) const {
    EXPECT_EQ(differences(outputs_of(run()), expected), std::vector<std::string>());
  }
  // Of a run that nothing happens to; leaves no run folder.
  Files undisturbed() const {
    const Outcome outcome = run_alone(job("launch"));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    const Files files = outputs_of(run());
    fs::remove_all(run());
    return files;
  }
  // Of a training: checkpoints are there, the model is not.
  void stop_in_the_middle() const {
    for (const char* stage : {"prepare", "route", "shard"}) {
      ASSERT_EQ(run_alone(job(stage)).exit_code, 0) << stage;
    }
    const fs::path model = run() / "experts/0/model.safetensors";
    const Outcome stopped =
        run_alone(job("train", "--expert 0"),
                  std::string(kShim) + " SMALLTALK_FAULT_IN=" + model.string() +
                      " SMALLTALK_FAULT_LOG=" + (folder_ / "calls.txt").string() +
                      " SMALLTALK_FAULT_CALL=1 SMALLTALK_FAULT_ERRNO=" + std::to_string(EIO));
    ASSERT_EQ(stopped.exit_code, 1) << stopped.output;
    ASSERT_FALSE(fs::exists(model));
  }
};

TEST_F(Fault, ARunFolderMayBeMovedBetweenTwoStarts) {
  const Files expected = undisturbed();
  stop_in_the_middle();
  fs::path folder = run();
  for (const std::string stage : {"prepare", "route", "shard", "launch", "evaluate"}) {
    SCOPED_TRACE(stage);
    const fs::path moved = folder_ / ("moved before " + stage);
    fs::rename(folder, moved);
    folder = moved;
    if (stage == "evaluate") {
      fs::remove_all(folder / "evaluation");
      fs::remove(folder / "results.json");
    }
    const Outcome outcome = run_alone(stage + " " + experiment().string() + " --out '" +
                                      folder.string() + "'" + settings_);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "experts/0 goes on from step 8"), stage == "launch")
        << outcome.output;
  }
  EXPECT_FALSE(fs::exists(run()));
  EXPECT_EQ(differences(outputs_of(folder), expected), std::vector<std::string>());
}

TEST_F(Fault, AClockThatJumpsChangesNothingButTimes) {
  constexpr double kJump = 80000;  // seconds; all of the run takes far less
  const Files expected = undisturbed();
  const Outcome outcome = run_alone(
      job("launch"), std::string(kShim) + " 'SMALLTALK_CLOCK_ERRORS=7200 -90000 0 -3 86400'");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  expect_outputs(expected);

  double earliest = INFINITY, latest = 0;
  for (const std::string model : {"experts/0", "experts/1", "routers/0", "routers/1"}) {
    std::istringstream rows(read_text(run() / model / "metrics.jsonl"));
    for (std::string text; std::getline(rows, text);) {
      const auto row = nlohmann::json::parse(text);
      earliest = std::min(earliest, row.at("time").get<double>());
      latest = std::max(latest, row.at("time").get<double>());
      for (const auto& [key, value] : row.items()) {
        EXPECT_TRUE(!value.is_number() || value.get<double>() >= 0) << key << " in " << text;
      }
      EXPECT_GT(row.at("throughput(tps)").get<double>(), 0) << text;
      EXPECT_LT(row.at("eta(s)").get<double>(), kJump) << text;
    }
  }
  EXPECT_GT(latest - earliest, 90000);  // it did jump
  const auto stages = nlohmann::json::parse(read_text(run() / "seconds.json"));
  for (const auto& [stage, seconds] : stages.items()) {
    EXPECT_GE(seconds.get<double>(), 0) << stage;
    EXPECT_LT(seconds.get<double>(), kJump) << stage;
  }
}

TEST_F(Fault, ADiskThatIsFullForReal) {
  const Files expected = undisturbed();
  fs::create_directories(run());
  const auto on_small_disk = [&](int64_t kilobytes, const std::string& commands) {
    return run_command("unshare --map-root-user --mount sh -c 'mount -t tmpfs -o size=" +
                       std::to_string(kilobytes) + "k tmpfs " + run().string() + " && " + commands +
                       "'");
  };
  if (on_small_disk(64, "true").exit_code != 0) {
    GTEST_SKIP() << "this machine lets nobody mount a small disk";
  }
  const std::string binary = alone() + from_environment("SMALLTALK_BINARY") + " ";
  std::string stages = "true";
  for (const auto& [stage, arguments] : std::vector<std::pair<std::string, std::string>>{
           {"prepare", ""}, {"route", ""}, {"shard", ""}, {"train", "--expert 0"}}) {
    stages += " && " + binary + job(stage, arguments);
  }
  for (const int64_t kilobytes : {64, 280, 420}) {
    SCOPED_TRACE(kilobytes);
    const std::string saved = (folder_ / std::to_string(kilobytes)).string();
    const Outcome outcome = on_small_disk(
        kilobytes, "{ " + stages + "; echo code=$?; find " + run().string() +
                       " -name \".tmp-*\" | sed s/^/left:/; mount -o remount,size=1g " +
                       run().string() + " && " + binary + job("launch") + " && cp -a " +
                       run().string() + " " + saved + "; }");
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "code=1\n"), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "No space left on device"), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "left:"), 0) << outcome.output;
    EXPECT_EQ(differences(outputs_of(saved), expected), std::vector<std::string>());
  }
}

TEST_F(Fault, OfADamagedCheckpointTheOneBeforeIsUsed) {
  stop_in_the_middle();
  keep_as("stopped");
  const std::string train = job("train", "--expert 0");
  ASSERT_EQ(run_alone(train).exit_code, 0);
  const Files expected = outputs_of(run());
  const fs::path checkpoints = run() / "experts/0/checkpoints";
  const fs::path earlier = checkpoints / "step-00000004.safetensors";
  const fs::path later = checkpoints / "step-00000008.safetensors";
  const std::string whole = read_text(folder_ / "stopped/experts/0/checkpoints" / later.filename());
  std::string flipped = whole;
  flipped[whole.size() / 2] ^= 4;
  const std::string garbage(whole.size(), '\xA7');
  for (const std::string& damaged :
       {whole.substr(0, whole.size() / 2), flipped, garbage, std::string()}) {
    go_back_to("stopped");
    ASSERT_TRUE(fs::exists(earlier));
    std::ofstream(later, std::ios::binary) << damaged;
    const Outcome outcome = run_alone(train);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_GE(count_of(outcome.output, later.filename()), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "goes on from step 4"), 1) << outcome.output;
    EXPECT_EQ(differences(outputs_of(run()), expected), std::vector<std::string>());
  }
  go_back_to("stopped");
  std::ofstream(earlier, std::ios::binary) << garbage;
  std::ofstream(later, std::ios::binary) << garbage;
  const Outcome outcome = run_alone(train);
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "from its beginning"), 1) << outcome.output;
}

TEST_F(Fault, AMixtureOfTwoRunsIsRefused) {
  ASSERT_EQ(run_alone(job("launch")).exit_code, 0);
  keep_as("whole");
  fs::remove_all(run());
  ASSERT_EQ(run_alone(job("launch", "--set seed=2")).exit_code, 0);
  keep_as("other");
  for (const std::string part : {"experts/1", "routers/0"}) {
    SCOPED_TRACE(part);
    go_back_to("whole");
    const fs::path model = fs::path(part) / "model.safetensors";
    fs::copy_file(folder_ / "other" / model, run() / model, fs::copy_options::overwrite_existing);
    const Outcome outcome = run_alone(job("evaluate"));
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, (run() / model).string() + " does not belong"), 1)
        << outcome.output;
  }
  // What was evaluated with weights that are no longer there is evaluated anew.
  go_back_to("whole");
  const fs::path cell = run() / "evaluation/test/experts-0.h5";
  const std::string right = read_text(cell);
  fs::copy_file(folder_ / "other/evaluation/test/experts-0.h5", cell,
                fs::copy_options::overwrite_existing);
  EXPECT_EQ(run_alone(job("evaluate")).exit_code, 0);
  EXPECT_TRUE(read_text(cell) == right);
  // So is what is left of a model that was removed to be trained anew.
  fs::remove_all(run() / "experts/0");
  EXPECT_EQ(run_alone(job("evaluate")).exit_code, 1);  // not trained yet
  const Outcome again = run_job(2, job("launch"));     // one group looks at it before it is there
  EXPECT_EQ(again.exit_code, 0) << again.output;
  EXPECT_TRUE(read_text(cell) == right);
}

TEST_F(Fault, OfTwoJobsOnOneRunFolderTheSecondRefuses) {
  settings_ += " --set expert.train_steps=2000 --set expert.save_interval=500";
  const Files expected = undisturbed();
  const auto lock_of = [&](pid_t process) {  // empty: it holds none yet
    std::error_code none;
    for (const auto& file : fs::directory_iterator(run() / "locks", none)) {
      const std::string holder = "process " + std::to_string(process) + " ";
      if (read_text(file.path()).starts_with(holder)) return holder;
    }
    return std::string();
  };
  const auto try_beside = [&](const std::string& first, const std::vector<std::string>& seconds) {
    StartedJob started("OMP_NUM_THREADS=1 " + alone() + "exec " +
                           from_environment("SMALLTALK_BINARY") + " " + first,
                       folder_ / "output.txt");
    while (lock_of(started.pid()).empty() && started.running()) brief_pause();
    kill(started.pid(), SIGSTOP);
    for (const std::string& second : seconds) {
      const Outcome outcome = run_alone(second);
      EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
      EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
      EXPECT_EQ(count_of(outcome.output, lock_of(started.pid())), 1) << outcome.output;
    }
    const Outcome status =
        run_command(from_environment("SMALLTALK_BINARY") + " status --json " + run().string());
    EXPECT_EQ(count_of(status.output, "\"running\":1"), 1) << first << "\n" << status.output;
    kill(started.pid(), SIGCONT);
    const Outcome outcome = started.wait();
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  };
  for (const char* stage : {"prepare", "route"}) {
    ASSERT_EQ(run_alone(job(stage)).exit_code, 0) << stage;
  }
  try_beside(job("launch"), {job("prepare"), job("route"), job("shard"), job("launch")});
  expect_outputs(expected);
  fs::remove_all(run() / "experts/0");
  try_beside(job("train", "--expert 0"), {job("train", "--expert 0")});
  expect_outputs(expected);
}

}  // namespace
}  // namespace smalltalk
