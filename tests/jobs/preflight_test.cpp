// What would fail or be of no use later is said before anything is computed.
#include <gtest/gtest.h>

#include "job_runner.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class Preflight : public JobTest {
 protected:
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string prepare(const std::string& out, const std::string& more) const {
    return "prepare " + experiment().string() + " --out " + path(out) + " " + more;
  }
  // One split or more, as overrides.
  std::string splits(const std::vector<std::string>& names, const std::string& file) const {
    std::string settings;
    for (const std::string& name : names) {
      settings += " --set 'data." + name + "=[\"" + path(file) + "\"]'";
    }
    return settings;
  }
  std::string all(const std::string& file) const {
    return splits({"train", "validation", "test"}, file);
  }
  void train_tokenizer() const {
    const Outcome outcome = run_alone("prepare --input " + path("heldout.jsonl") + " --tokenizer " +
                                      path("t.model") + " --vocab-size 300 --out " + path("t.h5"));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  }

  // By every job that begins a run, in one line that names each of `parts`.
  void expect_refused(const std::string& settings, const std::vector<std::string>& parts) const {
    for (const std::string& job :
         {launch("r", settings), launch("r", "--dry-run " + settings), prepare("r", settings)}) {
      const Outcome outcome = run_alone(job);
      EXPECT_EQ(outcome.exit_code, 1) << job << outcome.output;
      EXPECT_EQ(count_of(outcome.output, "error: "), 1) << job << outcome.output;
      for (const std::string& part : parts) {
        EXPECT_EQ(count_of(outcome.output, part), 1) << part << job << outcome.output;
      }
    }
    EXPECT_FALSE(fs::exists(folder_ / "r/tokens"));
  }
};

TEST_F(Preflight, ATokenizerOfAnotherSize) {
  train_tokenizer();
  const std::string named = "--set data.tokenizer=" + path("t.model");
  expect_refused(named + " --set data.vocab_size=290", {"data.vocab_size = 290", "300 pieces"});
  expect_refused(named + " --set data.tokenizer_sample_bytes=7", {"data.tokenizer_sample_bytes"});
  const std::string again = "prepare --input " + path("heldout.jsonl") + " --tokenizer " +
                            path("t.model") + " --out " + path("t.h5") + " --vocab-size ";
  EXPECT_EQ(run_alone(again + "300").exit_code, 0);
  const Outcome other = run_alone(again + "310");
  EXPECT_EQ(other.exit_code, 1) << other.output;
  EXPECT_EQ(count_of(other.output, "--vocab-size is 310"), 1) << other.output;
}

// Its ids cannot be repeated elsewhere: everything works, but export refuses, which is said at
// once.
TEST_F(Preflight, ATokenizerThatCannotBeExported) {
  train_tokenizer();
  std::string bytes = read_text(folder_ / "t.model");
  // The normaliser is written behind its name: add_dummy_prefix is field 3.
  const size_t prefix = bytes.find(std::string("\x18\x00", 2), bytes.rfind("identity"));
  ASSERT_NE(prefix, std::string::npos);
  bytes[prefix + 1] = 1;
  std::ofstream(folder_ / "dummy.model", std::ios::binary) << bytes;
  const std::string few =
      " --set expert.train_steps=4 --set baselines.dense=false "
      "--set baselines.dense_large_batch=false --set baselines.random_shards=false";
  const std::string warned = "cannot repeat: all but `export` will work";
  for (const auto& [model, warnings] : {std::pair{"t.model", 0}, {"dummy.model", 1}}) {
    const std::string settings = "--set data.tokenizer=" + path(model) + few;
    const std::string out = std::string("run-") + model;
    for (const std::string& job :
         {launch(out, "--dry-run " + settings), prepare(out, settings), launch(out, settings)}) {
      const Outcome outcome = run_alone(job);
      EXPECT_EQ(outcome.exit_code, 0) << job << outcome.output;
      EXPECT_EQ(count_of(outcome.output, warned), warnings) << job << outcome.output;
    }
    const Outcome exported = run_alone("export " + path(out) + " --out " + path(out + "-hf"));
    EXPECT_EQ(exported.exit_code, warnings) << exported.output;
  }
}

TEST_F(Preflight, FieldsThatNoFileHas) {
  std::ofstream text(folder_ / "a.txt");
  for (int i = 0; i < 3000; ++i) text << "some words of a text, " << i << "\n";
  text.close();
  expect_refused("--set data.lines=true", {"data.lines", ".txt"});
  expect_refused("--set data.text_key=words",
                 {"data.train", "none of the first", "no string \"words\""});
  expect_refused(all("a.txt") + " --set data.text_key=body", {"data.text_key", "JSON"});
  expect_refused(all("a.txt") + " --set data.domain_key=topic", {"data.domain_key", "JSON"});
  for (const std::string& settings : {all("a.txt") + " --set 'data.domain_key=\"\"'",
                                      splits({"train"}, "a.txt") + " --set data.text_key=text",
                                      all("a.txt") + " --set data.lines=true"}) {
    const Outcome outcome = run_alone(launch("r", "--dry-run " + settings));
    EXPECT_EQ(outcome.exit_code, 0) << settings << outcome.output;
  }
  const Outcome lines =
      run_alone("prepare --lines --input " + path("heldout.jsonl") + " --tokenizer " +
                path("t.model") + " --vocab-size 300 --out " + path("t.h5"));
  EXPECT_EQ(lines.exit_code, 1) << lines.output;
  EXPECT_EQ(count_of(lines.output, "--lines is set"), 1) << lines.output;
}

TEST_F(Preflight, LinesThatMayBeDocuments) {
  std::ofstream text(folder_ / "lines.txt"), book(folder_ / "book.txt");
  for (int i = 0; i < 100'000; ++i) {
    text << "one short document of some 45 letters, number " << i << "\n";
    book << "a line of some paragraph of some book, as long as it is\n" << (i % 5 ? "" : "\n");
  }
  text.close();
  book.close();
  const std::string hint = "lines.txt is read as one document";
  for (const auto& [file, more, hints] : {std::tuple{"lines.txt", "", 1},
                                          {"lines.txt", " --set data.lines=true", 0},
                                          {"book.txt", "", 0}}) {
    const Outcome outcome = run_alone(launch("r", "--dry-run" + all(file) + more));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "is read as one document"), hints) << outcome.output;
  }
}

TEST_F(Preflight, TooLittleText) {
  std::ofstream(folder_ / "short.jsonl") << "{\"text\": \"few\"}\n";
  expect_refused(splits({"test"}, "short.jsonl"), {"data.test", "at most 0 sequences"});
  expect_refused(splits({"validation"}, "short.jsonl"), {"data.validation", "data.seq_length"});
  expect_refused("--set mixture.sequences_per_round=100000",
                 {"data.train", "mixture.sequences_per_round is 100000"});
  // It has more bytes than that takes tokens, but hardly as many tokens.
  const auto bytes = static_cast<int64_t>(fs::file_size(folder_ / "train.jsonl"));
  const Outcome few = run_alone(launch(
      "r", "--dry-run --set mixture.sequences_per_round=" + std::to_string(bytes / 32 * 3 / 4)));
  EXPECT_EQ(few.exit_code, 0) << few.output;
  EXPECT_EQ(count_of(few.output, "data.train holds probably less"), 1) << few.output;
  // How much comes out of a compressed file is guessed.
  ASSERT_EQ(run_command("gzip -k " + path("train.jsonl")).exit_code, 0);
  const Outcome packed = run_alone(launch("r", "--dry-run " + splits({"train"}, "train.jsonl.gz") +
                                                   " --set mixture.sequences_per_round=100000"));
  EXPECT_EQ(packed.exit_code, 0) << packed.output;
  EXPECT_EQ(count_of(packed.output, "data.train holds probably less"), 1) << packed.output;

  // Once there are tokens, they are counted.
  ASSERT_EQ(run_alone(prepare("made", "")).exit_code, 0);
  const Outcome counted =
      run_alone(launch("made", "--dry-run --set mixture.sequences_per_round=100000"));
  EXPECT_EQ(counted.exit_code, 1) << counted.output;
  EXPECT_EQ(count_of(counted.output, "at most"), 0) << counted.output;
  EXPECT_EQ(count_of(counted.output, "mixture.sequences_per_round is 100000"), 1) << counted.output;
}

// The groups that the world gives may be too large for the micro-batches.
TEST_F(Preflight, AMicroBatchThatDoesNotFit) {
  const std::string settings = " --set expert.micro_batch_size=4 --dry-run --world ";
  EXPECT_EQ(run_alone(launch("r", settings + "8")).exit_code, 0);
  const Outcome outcome = run_alone(launch("r", settings + "16"));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "expert.micro_batch_size (4)"), 1) << outcome.output;
}

TEST_F(Preflight, OptionsThatCannotAct) {
  const std::string tail = " " + experiment().string() + " --out " + path("r") + " ";
  for (const auto& [job, said] : std::vector<std::pair<std::string, std::string>>{
           {"prepare" + tail + "--tokenizer t.model", "--input"},
           {"prepare" + tail + "--vocab-size 300", "--input"},
           {"prepare" + tail + "--sample-bytes 300", "--input"},
           {"prepare" + tail + "--text-key body", "--input"},
           {"prepare" + tail + "--domain-key topic", "--input"},
           {"prepare" + tail + "--lines", "--input"},
           {"prepare" + tail + "--max-bad-fraction 0.1", "--input"},
           {"prepare --input a.txt --out t.h5 --tokenizer t.model --set seed=2", "experiment"},
           {"train" + tail + "--expert 0 --model experts/1", "--expert"},
           {"train" + tail + "--unit 0 --model experts/1", "--model"},
           {"status r --set seed=2", "--experiment"},
           {"status r --stage train", "--tsv"},
           {"status r --index 2", "--tsv"},
           {"generate r --temperature 0 --top-k 5", "--top-k"},
           {"generate r --temperature 0 --top-p 0.5", "--top-p"},
           {"generate r --model experts/0 --prefix-tokens 8", "--prefix-tokens"},
           {"explain r --text words --shards shards.h5", "--shards"},
           {"assign --scores s.h5 --compare --method margin", "--method"},
           {"assign --scores s.h5 --compare --no-certificate", "--no-certificate"},
           {"bench tiny-step --precision bf16-mixed", "--precision"},
           {"bench tiny-step --device cuda --threads 2", "--threads"}}) {
    const Outcome outcome = run_alone(job);
    EXPECT_EQ(outcome.exit_code, 2) << job << outcome.output;
    EXPECT_GE(count_of(outcome.output, said), 1) << job << outcome.output;
  }
  // Of an assignment: what the experiment says counts, too.
  ASSERT_EQ(run_alone("prepare" + tail).exit_code, 0);
  ASSERT_EQ(run_alone("route" + tail).exit_code, 0);
  for (const auto& [options, said] :
       {std::pair{"--epsilon 0.1", "--epsilon has no effect on the method greedy"},
        {"--epsilon 0.1 --method margin", "--epsilon has no effect on the method margin"}}) {
    const Outcome outcome = run_alone("shard" + tail + options);
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, said), 1) << outcome.output;
  }
  EXPECT_EQ(run_alone("shard" + tail + "--epsilon 0.1 --method optimal").exit_code, 0);
}

TEST_F(Preflight, FiguresOfARun) {
  std::ofstream(folder_ / "heldout.jsonl", std::ios::app)
      << "{\"text\": \"not a number\", \"size\": NaN}\n{\"text\": \"\"}\n";
  const std::string tolerant = "--set data.max_bad_fraction=0.1 ";
  const Outcome told = run_alone(prepare("run", "--json " + tolerant));
  ASSERT_EQ(told.exit_code, 0) << told.output;
  const auto figures = [&](const std::string& output) {
    const size_t begin = output.find("{\"");
    return nlohmann::json::parse(output.substr(begin, output.find('\n', begin) - begin));
  };
  const auto run = figures(told.output);
  EXPECT_EQ(run.at("train").at("documents"), 1500);
  EXPECT_EQ(run.at("test").at("documents"), 201);
  EXPECT_EQ(run.at("test").at("empty"), 1);
  EXPECT_EQ(run.at("already_complete"), false);
  EXPECT_GT(run.at("tokens_per_second"), 0);
  EXPECT_EQ(figures(run_alone(prepare("run", "--json " + tolerant)).output).at("already_complete"),
            true);
  // As they are told of a file without an experiment.
  const Outcome alone =
      run_alone("prepare --json --max-bad-fraction 0.1 --input " + path("heldout.jsonl") +
                " --tokenizer " + path("run/tokens/tokenizer.model") + " --out " + path("t.h5"));
  auto same = figures(alone.output);
  for (const char* of_the_job : {"seconds", "tokens_per_second", "already_complete"}) {
    EXPECT_EQ(same.erase(of_the_job), 1u) << alone.output;
  }
  EXPECT_EQ(same, run.at("test"));

  const auto file =
      nlohmann::json::parse(run_alone("inspect --json " + path("run/tokens/test.h5")).output);
  EXPECT_EQ(file.at("files_read"), 1);
  EXPECT_EQ(file.at("documents_read"), 202);
  EXPECT_EQ(file.at("empty"), 1);
  EXPECT_EQ(file.at("bent"), same.at("bent"));
  EXPECT_EQ(file.at("bent").size(), 1u);
  EXPECT_EQ(file.at("files_left_out").size(), 0u);
}

TEST_F(Preflight, SaysItsVersion) {
  const Outcome outcome = run_alone("--version");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_TRUE(outcome.output.starts_with("smalltalk ")) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "."), 2) << outcome.output;
}

}  // namespace
}  // namespace smalltalk
