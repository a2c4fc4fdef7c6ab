// Bad input: one clear error that says what to do, a failure on every rank; nobody hangs.
#include <gtest/gtest.h>

#include "job_runner.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class BadInput : public JobTest {
 protected:
  // The job fails on two ranks, of itself, and says each of `parts` in exactly one line.
  void expect_refused(const std::string& arguments, const std::vector<std::string>& parts) {
    const Outcome outcome = run_job(2, arguments);
    EXPECT_NE(outcome.exit_code, 0) << arguments;
    EXPECT_NE(outcome.exit_code, kTimedOut) << arguments;
    EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
    for (const std::string& part : parts) {
      EXPECT_GE(count_of(outcome.output, part), 1) << "wanted: " << part << "\n" << outcome.output;
    }
  }
};

TEST_F(BadInput, OfTheExperiment) {
  expect_refused(launch("r", "--set expert.hiden_size=3"), {"expert.hiden_size", "hidden_size"});
  expect_refused(launch("r", "--set expert.lr=fast"), {"expert.lr"});
  expect_refused(launch("r", "--set mixture.prefix_tokens=33"),
                 {"mixture.prefix_tokens", "data.seq_length"});
  expect_refused(
      "launch " + (folder_ / "absent.toml").string() + " --out " + (folder_ / "r").string(),
      {"absent.toml"});
  expect_refused(
      launch("r", "--set 'data.train=[\"" + (folder_ / "absent.jsonl").string() + "\"]'"),
      {"absent.jsonl"});
  expect_refused(
      launch("r1", "--set mixture.experts=20000 --set mixture.sequences_per_round=200000"),
      {"mixture.experts", "sequences"});
  expect_refused(launch("r2", "--set mixture.sequences_per_round=1000000"),
                 {"mixture.sequences_per_round"});
  expect_refused(launch("r", "--set mixture.group_size=3"), {"mixture.group_size"});
  // What was refused before it computed anything does not stand in the way of the corrected run.
  EXPECT_EQ(run_job(2, launch("r")).exit_code, 0);
}

TEST_F(BadInput, OfTheRunFolder) {
  fs::create_directories(folder_ / "other");
  std::ofstream(folder_ / "file") << "not a folder\n";
  expect_refused(launch("file"), {"file"});
  expect_refused("launch " + experiment().string() + " --out /proc/smalltalk", {"/proc"});
  expect_refused(launch("big", "--dry-run --set expert.hidden_size=400000"), {"free space"});
  const std::string tail = " " + experiment().string() + " --out " + (folder_ / "run").string();
  expect_refused("route" + tail, {"tokenizer.model"});
  ASSERT_EQ(run_job(1, "prepare" + tail).exit_code, 0);
  expect_refused("shard" + tail, {"run route first"});
  expect_refused("train" + tail + " --expert 0", {"shards.h5"});
  expect_refused("train" + tail + " --expert 9", {"experts/9"});
  expect_refused("evaluate" + tail, {"not trained yet"});
  expect_refused("route" + tail + " --set data.vocab_size=310",
                 {"what another experiment made", "data.vocab_size", "300", "310", "tokens"});

  // A token file of another tokenizer.
  ASSERT_EQ(run_job(1, "prepare --input " + (folder_ / "heldout.jsonl").string() + " --tokenizer " +
                           (folder_ / "t.model").string() + " --vocab-size 290 --out " +
                           (folder_ / "t.h5").string())
                .exit_code,
            0);
  fs::copy_file(folder_ / "t.h5", folder_ / "run/tokens/test.h5",
                fs::copy_options::overwrite_existing);
  expect_refused("route" + tail, {"test.h5", "another tokenizer"});
}

TEST_F(BadInput, OfTheText) {
  std::ofstream(folder_ / "heldout.jsonl", std::ios::app) << "{\"text\": \"broken\n";
  expect_refused(launch("r"), {"heldout.jsonl:201"});
  const Outcome tolerated = run_job(2, launch("r2", "--set data.max_bad_fraction=0.01"));
  EXPECT_EQ(tolerated.exit_code, 0) << tolerated.output;
}

// Before anything is computed, and by --dry-run.
TEST_F(BadInput, OfTheTextsThatAreNamed) {
  std::ofstream(folder_ / "broken.model") << "no model\n";
  fs::create_directories(folder_ / "texts");
  fs::copy_file(folder_ / "train.jsonl", folder_ / "texts/a.jsonl");
  std::ofstream(folder_ / "texts/notes.md") << "x\n";
  const std::string texts = " --set 'data.train=[\"" + (folder_ / "texts").string() + "\"]'";
  for (const std::string how : {"", " --dry-run"}) {
    expect_refused(launch("r", "--set 'data.test=[\"nowhere.jsonl\"]'" + how),
                   {"data.test", "nowhere.jsonl"});
    expect_refused(launch("r", "--set 'data.validation=[]'" + how), {"data.validation"});
    expect_refused(launch("r", texts + how), {"data.train", "1 of 2 files", "1 .md"});
    expect_refused(launch("r", "--set data.tokenizer=absent.model" + how), {"absent.model"});
    // All that is wrong with them is said at once.
    expect_refused(launch("r",
                          "--set 'data.test=[\"nowhere.jsonl\"]' --set 'data.validation=[]' "
                          "--set data.tokenizer=absent.model" +
                              how),
                   {"data.validation: names no text", "data.test: nowhere.jsonl",
                    "data.tokenizer: cannot open 'absent.model'"});
    expect_refused(launch("r", "--set data.tokenizer=" + (folder_ / "broken.model").string() + how),
                   {"broken.model"});
  }
  const Outcome tolerated = run_job(2, launch("r", texts + " --set data.max_bad_fraction=0.5"));
  EXPECT_EQ(tolerated.exit_code, 0) << tolerated.output;
  EXPECT_EQ(count_of(tolerated.output, "files of the folders that are not read: 1 .md"), 1);
}

// One of two on the same file makes it; the other finds it made, or says who is at it.
TEST_F(BadInput, OfTwoThatWriteTheSame) {
  std::ofstream more(folder_ / "more.jsonl");
  for (int i = 0; i < 60'000; ++i) more << "{\"text\": \"ab cd ef gh " << i << "\"}\n";
  more.close();
  const std::string prepare = "prepare --input " + (folder_ / "more.jsonl").string() +
                              " --tokenizer " + (folder_ / "t.model").string() +
                              " --vocab-size 285 --out " + (folder_ / "t.h5").string();
  const Outcome both = run_command("(" + command(1, prepare) + "; echo code $?) & (" +
                                   command(1, prepare) + "; echo code $?); wait");
  const int refused = count_of(both.output, "t.h5 is being written by another job");
  EXPECT_EQ(count_of(both.output, "code 0"), 2 - refused) << both.output;
  EXPECT_EQ(count_of(both.output, "code 1"), refused) << both.output;
  EXPECT_LE(refused, 1);
  EXPECT_TRUE(fs::exists(folder_ / "t.h5"));
  EXPECT_FALSE(fs::exists(folder_ / "t.h5.parts"));
}

TEST_F(BadInput, OfTheLauncher) {
  const Outcome strangers =
      run_alone(launch("r"), "-u OMPI_COMM_WORLD_SIZE SLURM_STEP_NUM_TASKS=4");
  EXPECT_EQ(strangers.exit_code, 1) << strangers.output;
  EXPECT_EQ(count_of(strangers.output, "srun started 4 tasks"), 1) << strangers.output;
  EXPECT_FALSE(fs::exists(folder_ / "r"));
}

TEST_F(BadInput, OfTheCommandLine) {
  const Outcome outcome = run_job(2, "launch --no-such-option");
  EXPECT_NE(outcome.exit_code, 0);
  const Outcome signal = run_job(1, launch("r", "--signals USR1,KILL"));
  EXPECT_EQ(signal.exit_code, 2);
  EXPECT_EQ(count_of(signal.output, "KILL is none of USR1"), 1) << signal.output;
  EXPECT_EQ(run_job(1, "bench tiny-step --device tpu").exit_code, 2);
  const Outcome heads = run_job(1, "bench tiny-step --num-heads 7");
  EXPECT_EQ(heads.exit_code, 1) << heads.output;
  EXPECT_EQ(count_of(heads.output, "bench: "), 1) << heads.output;
  EXPECT_EQ(run_job(1, "--help").exit_code, 0);
  for (const char* job :
       {"launch", "prepare", "route", "shard", "train", "evaluate", "report", "inspect", "bench"}) {
    const Outcome help = run_job(1, std::string(job) + " --help");
    EXPECT_EQ(help.exit_code, 0) << job;
    EXPECT_GT(help.output.size(), 200u) << job;
  }
}

}  // namespace
}  // namespace smalltalk
