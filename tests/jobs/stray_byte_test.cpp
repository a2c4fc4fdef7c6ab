// A byte is planted between groups after the shards: the ledger has it, the job fails and says so,
// and the results keep it for good.
#include <gtest/gtest.h>

#include "fault_runner.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class StrayByte : public FaultTest {
 protected:
  // A job of two ranks, of which one sends a byte past its group as soon as it writes there.
  void expect_caught(const std::string& arguments, const std::string& at,
                     const std::string& complaint) const {
    const Outcome outcome = run_command(
        command(2, arguments, "LD_PRELOAD=" SMALLTALK_STRAY_BYTE " SMALLTALK_STRAY_BYTE_AT=" + at));
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, complaint), 1) << outcome.output;
  }
  // What the ledgers of a run say together.
  static int64_t bytes_after_shards(const fs::path& run) {
    int64_t bytes = 0;
    for (const auto& file : fs::directory_iterator(run / "ledger")) {
      const auto ledger = nlohmann::json::parse(read_text(file.path()));
      bytes += ledger.at("world_bytes_after_shards").get<int64_t>();
    }
    return bytes;
  }
  static int64_t bytes_in_results(const fs::path& run) {
    const auto results = nlohmann::json::parse(read_text(run / "results.json"));
    return results.at("communication").at("world_bytes_after_shards");
  }
};

TEST_F(StrayByte, IsCaughtInLaunch) {
  expect_caught(job("launch"), "/experts/1/",
                "[launch rank 1] error: sent 1 B past its own group after the shards: MPI_Send on "
                "MPI_COMM_WORLD in experts");
  EXPECT_EQ(bytes_after_shards(run()), 1);
  const Outcome again = run_job(2, job("launch"));
  EXPECT_EQ(again.exit_code, 0) << again.output;
  EXPECT_EQ(bytes_in_results(run()), 1);
}

TEST_F(StrayByte, IsCaughtInTrain) {
  for (const char* stage : {"prepare", "route", "shard"}) {
    ASSERT_EQ(run_alone(job(stage)).exit_code, 0) << stage;
  }
  expect_caught(job("train", "--expert 1"), "/experts/1/",
                "[train rank 0] error: sent 1 B past its own group after the shards: MPI_Send on "
                "MPI_COMM_WORLD in train");
  EXPECT_EQ(bytes_after_shards(run()), 1);
  ASSERT_EQ(run_job(2, job("train", "--expert 0")).exit_code, 0);
  ASSERT_EQ(run_job(2, job("evaluate")).exit_code, 0);
  EXPECT_EQ(bytes_in_results(run()), 1);
}

TEST_F(StrayByte, IsCaughtInSweep) {
  std::istringstream words(settings_);
  std::string keys;
  for (std::string word; words >> word;) {
    if (word != "--set") keys += (keys.empty() ? "\"" : ", \"") + word + "\"";
  }
  std::ofstream(folder_ / "sweep.toml")
      << "experiment = \"" << experiment().string() << "\"\nset = [" << keys
      << "]\nseeds = [1, 2]\n[[run]]\nname = \"main\"\n"
         "[[table]]\nname = \"all\"\ntitle = \"All\"\nrows = [{ run = \"main\" }]\n"
         "reference = { run = \"main\", model = \"mixture\" }\n";
  expect_caught("sweep " + (folder_ / "sweep.toml").string() + " --out " + run().string(),
                "/main-seed-2/experts/1/",
                "error: sent 1 B past its own group after the shards: MPI_Send on MPI_COMM_WORLD "
                "in experts");
  EXPECT_EQ(bytes_in_results(run() / "runs/main-seed-2"), 1);
}

}  // namespace
}  // namespace smalltalk
