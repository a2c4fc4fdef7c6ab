// One rank of two is killed at a random instant: the launcher ends by itself, nobody is left, and
// the same command, killed again or not, ends with the bytes of an undisturbed run. So it does
// after a signal to the launcher, with which the job ends as one that is to be started again.
// SMALLTALK_KILLS=200 kills so often, else 10 times, and sends a quarter as many signals.
#include <gtest/gtest.h>

#include <cmath>

#include "fault_runner.hpp"
#include "smalltalk/core/system/error.hpp"
#include "started_job.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

struct Stage {
  std::string job, arguments;
  double share;  // of all kills
};

// What is done to a job, and what it then ends with.
struct Harm {
  int signal = SIGKILL;
  bool to_launcher = false;      // else to one of the ranks
  std::optional<int> exit_code;  // none: any failure
};

class Kill : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    settings_ +=
        " --set mixture.rounds=6 --set expert.train_steps=300 --set expert.save_interval=20"
        " --set expert.log_interval=20"
        " --set lory.experts=2 --set lory.segment_tokens=8 --set lory.dense_warmup=0.4"
        " --set lory.train_steps=200";
  }

  std::string command(const std::string& arguments) const {
    return "OMP_NUM_THREADS=1 exec " + from_environment("SMALLTALK_MPIRUN") + " -n 2 " +
           from_environment("SMALLTALK_BINARY") + " " + arguments;
  }

  StartedJob start(const std::string& arguments) const {
    return StartedJob(command(arguments), folder_ / "output.txt");
  }

  // Runs the job to its end, and says for how long there were ranks to be harmed.
  std::array<double, 2> undisturbed(const std::string& arguments, const std::array<Harm, 2>& ways) {
    StartedJob started = start(arguments);
    std::array<double, 2> seconds{};
    for (size_t way = 0; way < ways.size(); ++way) {
      ranks_of(started, ways[way]);
      seconds[way] = -now_seconds();
    }
    const Outcome outcome = started.wait();
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    for (double& each : seconds) each += now_seconds();
    return seconds;
  }

  // Both, as soon as they are there and, if it is a signal to be caught, would catch it; and what
  // one of them may have started to train a tokenizer.
  std::vector<pid_t> ranks_of(StartedJob& started, const Harm& how) const {
    for (; started.running(); brief_pause()) {
      std::vector<pid_t> ranks =
          processes_with(run().string(), from_environment("SMALLTALK_BINARY"));
      const auto deaf = [&](pid_t rank) { return how.exit_code && !catches(rank, how.signal); };
      if (ranks.size() >= 2 && std::none_of(ranks.begin(), ranks.end(), deaf)) return ranks;
    }
    return {};
  }

  // Whether it was harmed before it was done.
  bool harm(const std::string& arguments, const Harm& how, double after_seconds, uint64_t draw,
            const Files& expected) {
    StartedJob started = start(arguments);
    const std::vector<pid_t> ranks = ranks_of(started, how);
    std::this_thread::sleep_for(std::chrono::duration<double>(after_seconds));
    if (!ranks.empty()) {
      ::kill(how.to_launcher ? started.pid() : ranks[draw % ranks.size()], how.signal);
    }
    const Outcome outcome = started.wait();
    // In its very last moments mpirun catches no signal any more, and dies of it: the job is done.
    if (outcome.exit_code == 0 || (how.to_launcher && outcome.exit_code == 128 + how.signal &&
                                   differences(outputs_of(run()), expected).empty())) {
      return false;
    }
    EXPECT_NE(outcome.exit_code, kTimedOut) << outcome.output;
    EXPECT_EQ(outcome.exit_code, how.exit_code.value_or(outcome.exit_code)) << outcome.output;
    for (const double patience = now_seconds() + 20; now_seconds() < patience; brief_pause()) {
      if (processes_with(run().string()).empty()) return true;
    }
    ADD_FAILURE() << "processes of the job are still there:\n" << outcome.output;
    return true;
  }

  // Harms the job `times` times, each time going on with what it left, and lets it come to its end.
  void harm_and_finish(const Stage& stage, const Harm& how, int times, double seconds,
                       const Files& expected) {
    const std::string arguments = job(stage.job, stage.arguments);
    int harmed = 0, too_late = 0;
    go_back_to("before");
    while (harmed < times) {
      const uint64_t draw = derive_seed(11, stage.job, static_cast<uint64_t>(how.signal),
                                        static_cast<uint64_t>(harmed + too_late));
      // The machine may have been slower when the time was taken: what came too late comes earlier.
      if (harm(arguments, how, unit_interval(draw) * seconds / (1 + too_late), draw, expected)) {
        ++harmed;
        continue;
      }
      ASSERT_LT(++too_late, 10 + 2 * times) << "it ends before anything can be done to it";
      EXPECT_EQ(differences(outputs_of(run()), expected), std::vector<std::string>());
      go_back_to("before");
    }
    const Outcome outcome = start(arguments).wait();
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_EQ(differences(outputs_of(run()), expected), std::vector<std::string>());
    if (stage.job == "train" || stage.job == "launch") {
      for (const char* models : {"experts", "lory"}) {
        if (!fs::exists(run() / models)) continue;
        for (const auto& entry : fs::recursive_directory_iterator(run() / models)) {
          EXPECT_FALSE(entry.path().filename().string().starts_with(".tmp-")) << entry.path();
        }
      }
    }
    std::cout << stage.job << ": signal " << how.signal << " " << harmed << " times within "
              << seconds << " s, " << too_late << " too late\n";
  }

  static int kills() {
    const char* number = std::getenv("SMALLTALK_KILLS");
    return number == nullptr ? 10 : std::atoi(number);
  }
};

// In an order in which each finds what it needs; launch begins with nothing.
const std::vector<Stage> kStages = {{"prepare", "", 0.1},         {"route", "", 0.2},
                                    {"shard", "", 0.15},          {"train", "--expert 0", 0.2},
                                    {"train", "--expert 1", 0.0}, {"train", "--model lory", 0.2},
                                    {"evaluate", "", 0.1},        {"launch", "", 0.25}};

TEST_F(Kill, CostsNoByte) {
  // A rank dies; the launcher gets a signal, a quarter as often.
  const std::array<Harm, 2> ways = {Harm(), Harm{SIGUSR1, true, kExitRequeue}};
  for (const Stage& stage : kStages) {
    SCOPED_TRACE(stage.job);
    if (stage.job == "launch") fs::remove_all(run());
    fs::create_directories(run());
    keep_as("before");
    const std::array<double, 2> seconds = undisturbed(job(stage.job, stage.arguments), ways);
    const Files expected = outputs_of(run());
    for (size_t way = 0; way < ways.size() && stage.share > 0; ++way) {
      const double times = stage.share * kills() / (way == 0 ? 1 : 4);
      harm_and_finish(stage, ways[way], static_cast<int>(std::lround(times)), seconds[way],
                      expected);
    }
  }
}

}  // namespace
}  // namespace smalltalk
