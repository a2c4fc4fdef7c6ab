// What may change in a run folder: what is there stays as it is, byte for byte, or nothing is done.
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "job_runner.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

using Bytes = std::map<std::string, std::string>;  // of files below the run folder

class Changes : public JobTest {
 protected:
  fs::path run() const { return folder_ / "run"; }
  // All that was made and that others are made from.
  Bytes made() const {
    Bytes bytes;
    for (const char* folder : {"tokens", "routers", "shards", "experts", "baselines"}) {
      if (!fs::exists(run() / folder)) continue;
      for (const auto& entry : fs::recursive_directory_iterator(run() / folder)) {
        const fs::path& file = entry.path();
        if (entry.is_regular_file() && file.extension() != ".seen") {
          bytes[fs::relative(file, run()).string()] = read_text(file);
        }
      }
    }
    return bytes;
  }
  Outcome diff(const std::string& arguments) const {
    return run_command("timeout 60 " + from_environment("SMALLTALK_BINARY") + " diff " +
                       run().string() + " " + experiment().string() + " " + arguments);
  }
};

TEST_F(Changes, WhatIsThereIsKeptOrTheChangeIsRefused) {
  Outcome outcome = run_job(2, launch("run"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(diff("").output, "no key differs\n");
  const Bytes before = made();
  std::string allowed;
  for (const char* change :
       {"name=other", "data.max_bad_fraction=0.5", "mixture.group_size=1",
        "router.micro_batch_size=2", "expert.micro_batch_size=2", "expert.recompute=full",
        "expert.log_interval=3", "expert.save_interval=7", "expert.keep_last=1",
        "expert.outlier_zscore=9", "expert.outlier_skip=true", "router.skip_nonfinite=true",
        "device.threads=2", "device.flops_per_second=1e9", "baselines.random_shards=false"}) {
    allowed += std::string(" --set ") + change;
    EXPECT_EQ(diff(allowed).exit_code, 0) << change;
  }
  outcome = run_job(2, launch("run", allowed));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "goes on with these keys changed"), 1) << outcome.output;
  EXPECT_TRUE(made() == before);
  EXPECT_EQ(diff(allowed).output, "no key differs\n");

  const std::string all_experts = "experts/0, experts/1, experts/2, experts/3";
  for (const auto& [change, spoils] : std::map<std::string, std::string>{
           {"data.vocab_size=310", "tokens"},
           {"data.text_key=body", "tokens"},
           {"seed=9", "routers, shards, " + all_experts},
           {"data.seq_length=16", "routers, shards, " + all_experts},
           {"mixture.experts=2", "routers, shards, " + all_experts},
           {"router.lr=0.1", "routers, shards, " + all_experts + "\n"},
           {"expert.lr=0.1", all_experts + ", baselines/dense"},
           {"baselines.dense_lr=0.1", "baselines/dense\n"}}) {
    const std::string arguments = allowed + " --set " + change;
    const Outcome told = diff(arguments);
    EXPECT_EQ(told.exit_code, 1) << told.output;
    EXPECT_EQ(count_of(told.output, spoils), 1) << change << "\n" << told.output;
    const Outcome refused = run_job(2, launch("run", arguments));
    EXPECT_EQ(refused.exit_code, 1) << refused.output;
    EXPECT_EQ(count_of(refused.output, spoils), 1) << change << "\n" << refused.output;
    EXPECT_EQ(diff(allowed).output, "no key differs\n");
  }
  EXPECT_TRUE(made() == before);

  // What nobody has made yet may change: all else is kept.
  fs::remove_all(run() / "baselines/dense");
  outcome = run_job(2, launch("run", allowed + " --set baselines.dense_lr=0.02"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const auto& [file, bytes] : made()) {
    if (!file.starts_with("baselines/dense/")) {
      EXPECT_TRUE(bytes == before.at(file)) << file;
    }
  }
  EXPECT_NE(read_text(run() / "baselines/dense/model.safetensors"),
            before.at("baselines/dense/model.safetensors"));
}

// Stopped by a limit of its own, a run goes on with what its message advises.
TEST_F(Changes, AStoppedRunGoesOnWithOtherTolerances) {
  std::ofstream(folder_ / "train.jsonl", std::ios::app) << "{\"text\": null}\n";
  Outcome outcome = run_job(2, launch("run"));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_GE(count_of(outcome.output, "data.max_bad_fraction"), 1) << outcome.output;
  const std::string tolerant = "--set data.max_bad_fraction=0.01 ";
  outcome = run_job(2, launch("run", tolerant + "--set expert.lr=1e18 --set expert.grad_clip=0"));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_GE(count_of(outcome.output, "skip_nonfinite = true"), 1) << outcome.output;
  const Bytes before = made();
  // It skips ten in a row and ends again, but it went on.
  outcome = run_job(2, launch("run", tolerant + "--set expert.lr=1e18 --set expert.grad_clip=0 "
                                                "--set expert.skip_nonfinite=true"));
  EXPECT_EQ(count_of(outcome.output, "goes on with these keys changed"), 1) << outcome.output;
  EXPECT_EQ(made().at("routers/0/model.safetensors"), before.at("routers/0/model.safetensors"));
}

// Of another text the models are evaluated anew.
TEST_F(Changes, AnotherTestTextIsAnotherResult) {
  ASSERT_EQ(run_job(2, launch("run")).exit_code, 0);
  const auto before = results("run");
  write_corpus("other", 80);
  const std::string other = "--set 'data.test=[\"" + (folder_ / "other.jsonl").string() + "\"]'";
  const Outcome refused = run_job(2, launch("run", other));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_EQ(count_of(refused.output, "from other inputs"), 1) << refused.output;
  fs::remove(run() / "tokens/test.h5");
  const Outcome outcome = run_job(2, launch("run", other));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  // As if there had never been another one.
  ASSERT_EQ(run_job(2, launch("fresh", other)).exit_code, 0);
  for (const char* what : {"models", "per_expert", "routing", "corpus"}) {
    EXPECT_EQ(results("run").at(what), results("fresh").at(what)) << what;
  }
  EXPECT_NE(results("run").at("corpus"), before.at("corpus"));
}

// Results are of the text that the models were trained on, though it has grown.
TEST_F(Changes, ResultsStayWithTheShardsOfTheExperts) {
  ASSERT_EQ(run_job(2, launch("run")).exit_code, 0);
  const auto before = results("run");
  std::ofstream more(folder_ / "train.jsonl", std::ios::app);
  more << read_text(folder_ / "heldout.jsonl");
  more.close();
  fs::remove(run() / "tokens/train.h5");
  const std::string tail = " " + experiment().string() + " --out " + run().string();
  ASSERT_EQ(run_job(2, "prepare" + tail).exit_code, 0);
  ASSERT_EQ(run_job(2, "shard --append" + tail).exit_code, 0);
  const Outcome outcome = run_job(2, "evaluate" + tail);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const char* what : {"models", "per_expert", "provenance"}) {
    EXPECT_EQ(results("run").at(what), before.at(what)) << what;
  }
  EXPECT_GT(results("run").at("corpus").at("train_tokens"), before.at("corpus").at("train_tokens"));
}

// Text is told by its content, wherever it lies, and is not needed for ever.
TEST_F(Changes, TextMayMoveAndGoButNotChange) {
  ASSERT_EQ(run_job(2, launch("run")).exit_code, 0);
  const Bytes before = made();
  // The same under another name, copied: of another time.
  fs::create_directory(folder_ / "moved");
  std::ofstream(folder_ / "moved/copy.jsonl") << read_text(folder_ / "train.jsonl");
  const std::string moved =
      "--set 'data.train=[\"" + (folder_ / "moved/copy.jsonl").string() + "\"]'";
  Outcome outcome = run_job(2, launch("run", moved));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  // A letter in the middle; then, with the time of before, only for those who look.
  std::string text = read_text(folder_ / "moved/copy.jsonl");
  const auto time = fs::last_write_time(folder_ / "moved/copy.jsonl");
  text[text.size() / 2] = text[text.size() / 2] == 'a' ? 'b' : 'a';
  std::ofstream(folder_ / "moved/copy.jsonl") << text;
  outcome = run_job(2, launch("run", moved));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(count_of(outcome.output, "copy.jsonl was another text then"), 1) << outcome.output;
  fs::last_write_time(folder_ / "moved/copy.jsonl", time);
  EXPECT_EQ(run_job(2, launch("run", moved)).exit_code, 0);
  const std::string prepare = "prepare " + experiment().string() + " --out " + run().string();
  outcome = run_job(2, prepare + " " + moved + " --verify");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(count_of(outcome.output, "copy.jsonl was another text then"), 1) << outcome.output;
  for (const char* name : {"train.jsonl", "heldout.jsonl", "moved/copy.jsonl"}) {
    fs::remove(folder_ / name);
  }
  outcome = run_job(2, launch("run", moved));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_TRUE(made() == before);
}

// Who comes second leaves the first one's experiment as it is.
TEST_F(Changes, ARefusedJobLeavesTheExperimentAlone) {
  const std::string first = command(1, launch("run"));
  const std::string second = command(1, launch("run", "--set seed=2"));
  const Outcome outcome =
      run_command("(" + first + " & sleep 0.6; " + second + "; echo code $?; wait)");
  EXPECT_EQ(count_of(outcome.output, "code 1"), 1) << outcome.output;
  EXPECT_EQ(count_of(read_text(run() / "experiment.toml"), "\nseed = 2\n"), 0);
  EXPECT_EQ(run_job(1, launch("run")).exit_code, 0);
}

}  // namespace
}  // namespace smalltalk
