// inspect in this process: what it prints of files made here.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../../jobs/jobs.hpp"
#include "mixture/report/format.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

using nlohmann::json;

struct Printed {
  int exit_code = 0;
  std::string out;
};

Printed inspect(std::vector<std::string> arguments) {
  CLI::App app;
  JobRun run;
  add_inspect_job(app, run);
  std::string line = "inspect";
  for (const std::string& argument : arguments) line += " " + argument;
  app.parse(line);
  testing::internal::CaptureStdout();
  Printed printed;
  printed.exit_code = run();
  printed.out = testing::internal::GetCapturedStdout();
  return printed;
}

json inspect_json(const std::filesystem::path& path) {
  const Printed printed = inspect({path.string(), "--json"});
  EXPECT_EQ(printed.exit_code, kExitDone);
  return json::parse(printed.out);
}

TEST(Inspect, ShardFile) {
  const TemporaryFolder folder;
  const std::vector<uint16_t> assignment = {0, 1, 0, 1, 2};
  write_shards(folder / "shards.h5", make_shards(assignment, 3, {}, {{"seed", "7"}}));
  const json found = inspect_json(folder / "shards.h5");
  EXPECT_EQ(found["kind"], "shards");
  EXPECT_EQ(found["sequences_by_expert"], json({2, 2, 1}));
  EXPECT_EQ(found["attributes"]["seed"], "7");
}

TEST(Inspect, ModelOrItsFolder) {
  const TemporaryFolder folder;
  const std::vector<float> values(6);
  write_safetensors(folder / "model.safetensors", {{"a", {{2, 3}, values}}}, {{"expert", "1"}});
  const json found = inspect_json(folder / "model.safetensors");
  EXPECT_EQ(found["parameters"], 6);
  EXPECT_EQ(found["tensors"][0]["name"], "a");
  EXPECT_EQ(found["tensors"][0]["shape"], json({2, 3}));
  EXPECT_EQ(found["metadata"]["expert"], "1");
  EXPECT_EQ(inspect_json(folder.path())["parameters"], 6);
}

TEST(Inspect, RowsAndAHalfWrittenOne) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "metrics.jsonl", "{\"step\":1}\n{\"step\":2}\n{\"st");
  const json found = inspect_json(folder / "metrics.jsonl");
  EXPECT_EQ(found["rows"], 2);
  EXPECT_EQ(found["broken_rows"], 1);
  EXPECT_EQ(found["last_row"]["step"], 2);
}

TEST(Inspect, DeepJsonIsAnError) {
  const TemporaryFolder folder;
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  write_text_atomically(folder / "a.json", deep);
  write_text_atomically(folder / "b.jsonl", deep + "\n{\"step\":1}\n");
  EXPECT_EQ(inspect({(folder / "a.json").string()}).exit_code, kExitFailure);
  EXPECT_EQ(inspect_json(folder / "b.jsonl")["broken_rows"], 1);
}

TEST(Inspect, ResultsAsATable) {
  const TemporaryFolder folder;
  const json results = {{"name", "a run"},
                        {"models", {{"mixture", {{"perplexity", {{"all", 18.5}}}}}}}};
  write_text_atomically(folder / "results.json", results.dump());
  EXPECT_EQ(inspect_json(folder / "results.json")["models"][0]["perplexity"], 18.5);
  const Printed printed = inspect({(folder / "results.json").string()});
  EXPECT_NE(printed.out.find("after_prefix"), std::string::npos);
  EXPECT_NE(printed.out.find("18.5"), std::string::npos);
}

// The report knows the ledger's phases, in their order.
TEST(Report, PutsAllPhasesInOrder) {
  std::vector<std::string> known(report::kPhases.begin(), report::kPhases.end());
  std::erase(known, "tfidf");  // no phase of its own
  std::vector<std::string> phases;
  for (int phase = 0; phase <= static_cast<int>(Phase::end); ++phase) {
    phases.push_back(to_string(static_cast<Phase>(phase)));
  }
  EXPECT_EQ(known, phases);
}

TEST(Inspect, UnknownFileFailsAndTheOthersStillPrint) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "notes.txt", "hello");
  write_text_atomically(folder / "seconds.json", "{\"route\":3.5}");
  const Printed printed = inspect({(folder / "notes.txt").string(), (folder / "nothing").string(),
                                   (folder / "seconds.json").string()});
  EXPECT_EQ(printed.exit_code, kExitFailure);
  EXPECT_NE(printed.out.find("3.5"), std::string::npos);
}

}  // namespace
}  // namespace smalltalk
