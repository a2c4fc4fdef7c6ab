// What may change in a run folder: what is there stays as it is, byte for byte, or nothing is done.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>

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
  // What `diff` says of a change, as a row of the table in tests/README.md.
  void tell(const std::string& change, const std::string& arguments) {
    const auto told = nlohmann::json::parse(diff(arguments + " --json").output);
    std::set<std::string> spoilt, trained_on;  // without the numbers of experts
    const auto kind = [](const std::string& stage) { return stage.substr(0, stage.find("/0")); };
    for (const auto& key : told.at("keys")) {
      for (const std::string stage : key.at("spoils")) {
        if (stage.find_last_of("123") != stage.size() - 1) spoilt.insert(kind(stage));
      }
    }
    for (const auto& model : told.at("trained_on")) {
      const std::string name = model.at("model");
      if (name.find_last_of("123") != name.size() - 1) trained_on.insert(kind(name));
    }
    const std::string what =
        !spoilt.empty()       ? fmt::format("refused, would spoil {}", fmt::join(spoilt, ", "))
        : !trained_on.empty() ? fmt::format("trained on: {}", fmt::join(trained_on, ", "))
                              : "all is kept";
    table_ += fmt::format("| `{}` | {} |\n", change, what);
  }
  void expect_table_in_readme(const std::string& name) const {
    const std::string page = read_text(SMALLTALK_TESTS "/README.md");
    const std::string begin = "<!-- changes, " + name + ": begin -->\n",
                      end = "<!-- changes, " + name + ": end -->";
    const size_t from = page.find(begin) + begin.size();
    EXPECT_EQ(page.substr(from, page.find(end) - from), table_);
  }

  std::string table_ = "| a finished run started again with | what comes of it |\n|---|---|\n";
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
    tell(change, std::string("--set ") + change);
  }
  outcome = run_job(2, launch("run", allowed));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "goes on with these changes"), 1) << outcome.output;
  EXPECT_TRUE(made() == before);
  EXPECT_EQ(diff(allowed).output, "no key differs\n");

  const std::string all_experts = "experts/0, experts/1, experts/2, experts/3";
  for (const auto& [change, spoils] : std::vector<std::pair<std::string, std::string>>{
           {"data.vocab_size=310", "tokens"},
           {"data.text_key=body", "tokens"},
           {"seed=9", "routers, shards, " + all_experts},
           {"data.seq_length=16", "routers, shards, " + all_experts},
           {"mixture.experts=2", "routers, shards, " + all_experts},
           {"router.lr=0.1", "routers, shards, " + all_experts + "\n"},
           {"expert.lr=0.1", all_experts + ", baselines/dense"},
           {"baselines.dense_lr=0.1", "baselines/dense\n"},
           {"expert.train_steps=80", all_experts + ", baselines/dense"}}) {
    const std::string arguments = allowed + " --set " + change;
    const Outcome told = diff(arguments);
    tell(change, std::string("--set ") + change);
    EXPECT_EQ(told.exit_code, 1) << told.output;
    EXPECT_EQ(count_of(told.output, spoils), 1) << change << "\n" << told.output;
    const Outcome refused = run_job(2, launch("run", arguments));
    EXPECT_EQ(refused.exit_code, 1) << refused.output;
    EXPECT_EQ(count_of(refused.output, spoils), 1) << change << "\n" << refused.output;
    EXPECT_EQ(diff(allowed).output, "no key differs\n");
  }
  EXPECT_TRUE(made() == before);
  expect_table_in_readme("cosine");

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

// A Lory model may be added, made anew and left out without anything else being touched.
TEST_F(Changes, KeysOfLoryAreItsOwn) {
  Outcome outcome = run_job(2, launch("run"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const Bytes before = made();
  const std::string lory = "--set lory.experts=3 --set lory.segment_tokens=8";
  EXPECT_EQ(diff(lory).exit_code, 0);
  outcome = run_job(2, launch("run", lory));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const char* change : {"lory.experts=2", "lory.segment_tokens=4", "lory.routing=prefix",
                             "lory.dense_warmup=0.2", "lory.lr=0.1", "lory.train_steps=500"}) {
    const Outcome told = diff(lory + " --set " + change);
    EXPECT_EQ(told.exit_code, 1) << change;
    EXPECT_EQ(count_of(told.output, " lory\n"), 1) << told.output;
    EXPECT_EQ(count_of(told.output, "experts/"), 0) << told.output;
    EXPECT_EQ(count_of(told.output, "baselines/dense\n"), 0) << told.output;
  }
  EXPECT_EQ(diff(lory + " --set lory.experts=0").exit_code, 0);
  EXPECT_EQ(count_of(diff(lory + " --set expert.lr=0.1").output, "dense_large_batch, lory, "), 1);
  fs::remove_all(run() / "lory");
  outcome = run_job(2, launch("run", lory + " --set lory.segment_tokens=4"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const auto& [file, bytes] : before) {
    if (file.ends_with(".safetensors")) {
      EXPECT_TRUE(read_text(run() / file) == bytes) << file;
    }
  }
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
  EXPECT_EQ(count_of(outcome.output, "goes on with these changes"), 1) << outcome.output;
  EXPECT_EQ(made().at("routers/0/model.safetensors"), before.at("routers/0/model.safetensors"));
}

// More steps go on from what is there, wherever its learning rates were those of a longer run, and
// end as one planned that long.
TEST_F(Changes, MoreStepsTrainOn) {
  const std::string schedule =
      "--set expert.lr_decay=wsd --set expert.decay_steps=10 --set expert.warmup_steps=4 "
      "--set expert.save_interval=7 ";
  const std::string fixed =
      "--set baselines.dense_warmup_steps=16 "
      "--set baselines.dense_large_batch_warmup_steps=4 ";
  const std::string longer = " --set expert.train_steps=60";
  ASSERT_EQ(run_job(2, launch("run", schedule)).exit_code, 0);
  // A dense model's warm-up is a share of its steps: with more of them it would be another one.
  Outcome refused = run_job(2, launch("run", schedule + longer));
  EXPECT_EQ(refused.exit_code, 1) << refused.output;
  EXPECT_EQ(count_of(refused.output, "baselines/dense, baselines/dense_large_batch\n"), 1)
      << refused.output;
  EXPECT_EQ(count_of(refused.output, "; baselines.dense_warmup_steps = "), 1);
  fs::remove_all(run());

  ASSERT_EQ(run_job(2, launch("run", schedule + fixed)).exit_code, 0);
  const Bytes before = made();
  const Outcome told = diff(schedule + fixed + longer);
  EXPECT_EQ(told.exit_code, 0) << told.output;
  EXPECT_EQ(count_of(told.output, " is trained on from step 30 to step 60"), 8) << told.output;
  EXPECT_EQ(count_of(told.output, " is trained on from "), 10) << told.output;
  for (const std::string change :
       {"expert.train_steps=60", "expert.train_steps=60 --set expert.decay_steps=20",
        "expert.train_steps=60 --set expert.lr_decay=wsd_sqrt",
        "expert.train_steps=60 --set baselines.dense_warmup_steps=0", "expert.train_steps=35",
        "expert.decay_steps=5", "expert.warmup_steps=5"}) {
    tell(change, schedule + fixed + "--set " + change);
  }
  expect_table_in_readme("wsd");
  const auto status = [&](const std::string& arguments) {
    return run_command(from_environment("SMALLTALK_BINARY") + " status " + run().string() +
                       " --tsv " + arguments);
  };
  EXPECT_EQ(count_of(status("").output, "\tdone\t"), 3 + 10 + 1 + 1 + 1);
  // All of it is to be submitted again but tokens, routers and shards.
  EXPECT_EQ(
      count_of(
          status("--experiment " + experiment().string() + " " + schedule + fixed + longer).output,
          "\tdone\t"),
      3);
  // The first step of expert 0 took long, which is not forgotten.
  const fs::path expert = run() / "experts/0";
  const std::string rows = read_text(expert / "metrics.jsonl");
  auto row = nlohmann::json::parse(rows.substr(0, rows.find('\n')));
  row["time_metrics/end_to_end(s)"] = 5000;
  write_text_atomically(expert / "metrics.jsonl", row.dump() + rows.substr(rows.find('\n')));
  Outcome outcome = run_job(2, launch("run", schedule + fixed + longer));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, " goes on from step 30"), 8) << outcome.output;
  const auto training = nlohmann::json::parse(read_text(expert / "training.json"));
  EXPECT_GT(training.at("seconds"), 5000);
  EXPECT_LT(training.at("seconds"), 6000);
  outcome = run_job(2, launch("planned", schedule + fixed + longer));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const Bytes grown = made();
  for (const auto& [file, bytes] : grown) {
    const bool of_models = file.starts_with("experts/") || file.starts_with("baselines/");
    EXPECT_EQ(before.contains(file) && before.at(file) == bytes,
              !of_models || file.ends_with("config.json") || file.ends_with("shards.txt"))
        << file;
    if (file.ends_with(".safetensors")) {
      EXPECT_TRUE(bytes == read_text(folder_ / "planned" / file)) << file;
    }
  }
  for (const char* what : {"models", "per_expert", "routing"}) {
    EXPECT_EQ(results("run").at(what), results("planned").at(what)) << what;
  }
  EXPECT_EQ(count_of(status("").output, "\tdone\t"), 3 + 10 + 1 + 1 + 1);

  // A constant rate goes on for ever, and may be cooled down at last.
  const auto constant = [&](const std::string& name, const std::string& steps,
                            const std::string& decay) {
    return run_job(2, launch(name,
                             "--set baselines.dense=false --set baselines.random_shards=false "
                             "--set baselines.dense_large_batch=false --set "
                             "expert.train_steps=" +
                                 steps + " --set expert.lr_decay=" + decay));
  };
  for (const auto& [steps, decay] : {std::pair{"20", "constant"},
                                     {"30", "constant"},
                                     {"40", "wsd --set expert.decay_steps=8"}}) {
    outcome = constant("constant", steps, decay);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  }
  ASSERT_EQ(constant("cooled", "40", "wsd --set expert.decay_steps=8").exit_code, 0);
  EXPECT_EQ(results("constant").at("models"), results("cooled").at("models"));

  // A cosine that has begun to fall cannot be stretched.
  refused = constant("constant", "80", "cosine");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_EQ(count_of(refused.output, "kept for expert.lr_decay constant, wsd and wsd_sqrt"), 1)
      << refused.output;
}

// Whoever looks at a run, and whatever is in the way of more steps, what is there stays.
TEST_F(Changes, NothingIsLostBeforeAModelIsTrainedOn) {
  const std::string set =
      "--set baselines.random_shards=false --set baselines.dense_large_batch="
      "false --set expert.lr_decay=constant --set "
      "baselines.dense_warmup_steps=8 --set expert.train_steps=";
  const std::string tail = " " + experiment().string() + " --out " + run().string() + " " + set;
  ASSERT_EQ(run_job(2, launch("run", set + "20")).exit_code, 0);
  const Bytes before = made();
  const std::string page = read_text(run() / "results.json");
  std::ofstream(folder_ / "task.jsonl") << R"({"good": "abc", "bad": "xyz"})"
                                        << "\n";
  const std::string task = " --task " + (folder_ / "task.jsonl").string();
  for (const auto& [job, more] :
       std::map<std::string, std::string>{{"compare", ""}, {"evaluate", ""}, {"tasks", task}}) {
    const Outcome outcome = run_job(1, job + tail + "30" + more);
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "must be trained on first"), 1) << outcome.output;
  }
  // A checkpoint that is damaged where only its hash tells.
  const fs::path checkpoint = run() / "experts/1/checkpoints/step-00000020.safetensors";
  std::string damaged = read_text(checkpoint);
  damaged[damaged.size() - 9] ^= 1;
  std::ofstream(checkpoint) << damaged;
  Outcome outcome = run_job(1, "train --model experts/1" + tail + "30");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  std::ofstream(checkpoint) << before.at("experts/1/checkpoints/step-00000020.safetensors");
  outcome = run_job(2, launch("run", set + "20"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_TRUE(made() == before);
  EXPECT_EQ(nlohmann::json::parse(page).at("models"), results("run").at("models"));

  // A baseline that was left out meanwhile catches up.
  ASSERT_EQ(run_job(2, launch("run", "--set baselines.dense=false " + set + "30")).exit_code, 0);
  outcome = run_job(2, launch("run", set + "30"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "baselines/dense is trained on from step "), 1)
      << outcome.output;
  ASSERT_EQ(run_job(2, launch("planned", set + "30")).exit_code, 0);
  EXPECT_EQ(results("run").at("models"), results("planned").at("models"));

  // The text has grown: experts go on with their shards, a dense model would be another one.
  std::ofstream more(folder_ / "train.jsonl", std::ios::app);
  more << read_text(folder_ / "heldout.jsonl");
  more.close();
  fs::remove(run() / "tokens/train.h5");
  ASSERT_EQ(run_job(2, "prepare" + tail + "30").exit_code, 0);
  ASSERT_EQ(run_job(2, "shard --append" + tail + "30").exit_code, 0);
  outcome = run_job(2, launch("run", set + "40"));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, " baselines/dense\n"), 1) << outcome.output;
  outcome = run_job(2, launch("run", "--set baselines.dense=false " + set + "40"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  ASSERT_EQ(run_job(2, launch("planned", "--set baselines.dense=false " + set + "40")).exit_code,
            1);
  EXPECT_NE(read_text(run() / "experts/0/model.safetensors"),
            before.at("experts/0/model.safetensors"));
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
  // Of other text the folder keeps no word.
  const std::string noted = read_text(run() / "experiment.toml");
  EXPECT_EQ(count_of(noted, "moved/copy.jsonl"), 1);
  outcome = run_job(
      2, launch("run", "--set 'data.train=[\"" + (folder_ / "heldout.jsonl").string() + "\"]'"));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(count_of(outcome.output, "nothing, if the text is the same"), 1) << outcome.output;
  EXPECT_EQ(read_text(run() / "experiment.toml"), noted);
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
  outcome = run_job(2, prepare + " " + moved + " --verify");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
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
