// Tasks of a trained run. That their figures are right is told by test_peer_lm_eval.py.
#include "smalltalk/mixture/evaluation/tasks.hpp"

#include <gtest/gtest.h>

#include "job_runner.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/torch/runtime.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class Tasks : public JobTest {
 protected:
  void SetUp() override {
    JobTest::SetUp();
    ASSERT_EQ(run_job(2, launch("run")).exit_code, 0);
    std::ofstream quiz(quiz_file());
    for (int i = 0; i < 200; ++i) {
      const auto word = [i](const std::string& purpose) {
        return std::string(3, static_cast<char>('a' + derive_seed(1, purpose, i) % 26));
      };
      quiz << nlohmann::json{{"context", word("context")},
                             {"choices", {word("first"), word("second"), word("third")}},
                             {"answer", i % 3}}
                  .dump()
           << "\n";
    }
  }

  fs::path run() const { return folder_ / "run"; }
  fs::path quiz_file() const { return folder_ / "quiz.jsonl"; }
  std::string arguments(const std::string& more = "") const {
    return "tasks " + experiment().string() + " --out " + run().string() + " --task " +
           quiz_file().string() + " " + more;
  }
  Outcome tasks(const std::string& more = "") const { return run_alone(arguments(more)); }
  // How many cells a job computed.
  static int computed(const Outcome& outcome) { return count_of(outcome.output, " choices, "); }
  std::string written() const { return read_text(run() / "tasks.json"); }
  void expect_refused(const Outcome& outcome, const std::string& reason) const {
    EXPECT_EQ(outcome.exit_code, kExitFailure) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, reason), 1) << outcome.output;
  }
};

TEST_F(Tasks, WhatWasScoredIsKeptWhoeverScoredIt) {
  constexpr int kModels = 4 + 4 + 2;  // experts, routers, dense models; not the control
  const auto trained = open_run(run());
  const RunLayout& layout = trained.layout;
  configure_runtime(trained.experiment.device, 0);
  std::vector<TrainUnit> units = units_of(trained);
  std::erase_if(units,
                [](const TrainUnit& unit) { return unit.kind->chosen_by == ChosenBy::turn; });
  {
    const TaskEvaluation evaluation(trained, units, {read_task(quiz_file(), "plain")});
    ASSERT_EQ(evaluation.num_cells(), static_cast<size_t>(kModels));
    evaluation.compute(0);
    watch_for_stop({{}, {}, now_seconds()});
    EXPECT_THROW(evaluation.compute(1), Stopped);
    EXPECT_TRUE(fs::exists(layout.scoring_notes("tasks-" + evaluation.name(1))));
    watch_for_stop({});
  }
  const Outcome first = tasks();
  ASSERT_EQ(first.exit_code, 0) << first.output;
  EXPECT_EQ(computed(first), kModels - 1);
  EXPECT_TRUE(fs::is_empty(layout.scoring_notes("").parent_path()));
  EXPECT_EQ(count_of(first.output, "quiz  200    0       acc "), 1) << first.output;

  const std::string results = written();
  const auto models = nlohmann::json::parse(results).at("models");
  EXPECT_EQ(models.size(), 3u);
  double total = 0;
  for (const double share : models["mixture"]["expert_shares"]["quiz"]) total += share;
  EXPECT_NEAR(total, 1, 1e-12);
  EXPECT_EQ(models["dense"]["n-samples"]["quiz"]["effective"], 200);

  const Outcome again = tasks();
  EXPECT_EQ(computed(again), 0) << again.output;
  EXPECT_EQ(written(), results);

  // A damaged cell and one of other weights are scored anew, the others are not.
  std::vector<fs::path> cells;
  for (const auto& entry : fs::recursive_directory_iterator(run() / "tasks")) {
    if (entry.path().extension() == ".json") cells.push_back(entry.path());
  }
  ASSERT_EQ(cells.size(), static_cast<size_t>(kModels));
  const std::string damaged = read_text(cells[0]);
  write_text_atomically(cells[0], damaged.substr(0, damaged.size() / 2));
  auto other = nlohmann::json::parse(read_text(cells[1]));
  other["weights"] = "0123456789abcdef";
  write_text_atomically(cells[1], other.dump());
  const Outcome repaired = tasks();
  EXPECT_EQ(computed(repaired), 2) << repaired.output;
  EXPECT_EQ(written(), results);

  // Two ranks share the work, and one of them tells of it.
  fs::remove_all(run() / "tasks");
  fs::remove(run() / "tasks.json");
  const Outcome shared = run_job(2, arguments());
  EXPECT_EQ(shared.exit_code, 0);
  EXPECT_EQ(count_of(shared.output, "metric"), 1) << shared.output;
  EXPECT_EQ(written(), results);
  // So do the elements of an array, which leave the telling to others.
  fs::remove_all(run() / "tasks");
  fs::remove(run() / "tasks.json");
  int parts = 0;
  for (const char* part : {"--part 0 --parts 2", "--part 1 --parts 2"})
    parts += computed(tasks(part));
  EXPECT_EQ(parts, kModels);
  EXPECT_FALSE(fs::exists(run() / "tasks.json"));
  fs::remove(run() / "report.html");
  EXPECT_EQ(computed(tasks()), 0);
  EXPECT_EQ(written(), results);
  EXPECT_GE(count_of(read_text(run() / "report.html"), "quiz"), 1);
  // Other requests are other work.
  EXPECT_EQ(computed(tasks("--prompt question")), kModels);
  const Outcome examples = tasks("--fewshot 2 --fewshot-seed 5");
  EXPECT_EQ(computed(examples), kModels);
  EXPECT_EQ(count_of(examples.output, "quiz  200    2       acc "), 1) << examples.output;
  const auto dense = nlohmann::json::parse(written()).at("models").at("dense");
  EXPECT_EQ(dense["n-shot"]["quiz"], 2);
  EXPECT_EQ(dense["fewshot_seed"]["quiz"], 5);
  EXPECT_EQ(dense["prompt"]["quiz"], "plain");
  EXPECT_EQ(computed(tasks("--fewshot 2 --fewshot-seed 5 --fewshot-file " + quiz_file().string())),
            0);
  EXPECT_EQ(tasks("--fewshot-seed 5").exit_code, kExitUsage);
  EXPECT_EQ(tasks("--fewshot -1").exit_code, kExitUsage);
  expect_refused(tasks("--fewshot 200"), "quiz.jsonl: 200 items are too few for 200 examples");
  expect_refused(
      tasks("--fewshot 1 --fewshot-file " + quiz_file().string() + " " + quiz_file().string()),
      "2 files of examples for 1 tasks that take examples");

  // Targets, of which is kept whether they are greedy, beside pairs, which take no examples.
  const fs::path words = folder_ / "words.jsonl", pairs = folder_ / "pairs.jsonl";
  std::ofstream(words) << "{\"context\": \"a b\", \"target\": \"c\"}\n"
                       << "{\"context\": \"d\", \"target\": \"e f\"}\n";
  std::ofstream(pairs) << "{\"good\": \"a b\", \"bad\": \"b a\"}\n";
  const std::string both = "--fewshot 1 --fewshot-file " + quiz_file().string() + " " +
                           words.string() + " --task " + pairs.string() + " " + words.string();
  const Outcome kinds = tasks(both);
  EXPECT_EQ(computed(kinds), 3 * kModels) << kinds.output;
  EXPECT_EQ(count_of(kinds.output, "words  2      1       perplexity "), 1) << kinds.output;
  EXPECT_EQ(count_of(kinds.output, "pairs  1      0       acc "), 1) << kinds.output;
  // Each with its own number of examples.
  const auto shots = nlohmann::json::parse(written()).at("models").at("mixture").at("n-shot");
  EXPECT_EQ(shots, (nlohmann::json{{"quiz", 1}, {"pairs", 0}, {"words", 1}}));
  write_text_atomically(run() / "tasks.json", "{}");
  EXPECT_EQ(computed(run_alone("tasks " + experiment().string() + " --out " + run().string() +
                               " --task " + pairs.string())),
            0);
  EXPECT_EQ(computed(tasks()), 0);
  const auto two = nlohmann::json::parse(written());
  EXPECT_EQ(two.at("models").at("dense").at("n-shot"), (nlohmann::json{{"quiz", 0}, {"pairs", 0}}));
  auto other_weights = two;
  for (auto& [name, model] : other_weights["models"].items()) {
    if (name == "dense") model["config"]["weights"] = "0123456789abcdef";
  }
  write_text_atomically(run() / "tasks.json", other_weights.dump());
  EXPECT_EQ(computed(tasks()), 0);
  const auto mended = nlohmann::json::parse(written()).at("models");
  EXPECT_EQ(mended.at("dense").at("n-shot"), (nlohmann::json{{"quiz", 0}}));
  EXPECT_EQ(mended.at("mixture").at("n-shot"), (nlohmann::json{{"quiz", 0}, {"pairs", 0}}));
  EXPECT_EQ(count_of(tasks("--fewshot 2 --fewshot-seed 5").output, "prompts or items: quiz"), 1);
  // Calls that end at once keep each other's; a name that is no UTF-8 is one name.
  write_text_atomically(run() / "tasks.json", "{}");
  const fs::path odd = folder_ / "odd\xff.jsonl";
  fs::copy_file(pairs, odd);
  const std::string call = alone() + from_environment("SMALLTALK_BINARY") + " tasks " +
                           experiment().string() + " --out " + run().string() + " --task ";
  for (int round = 0; round < 2; ++round) {
    std::string together;
    for (const fs::path& file : {quiz_file(), pairs, words, odd}) {
      together += call + file.string() + " & ";
    }
    const Outcome all = run_command(together + "wait");
    const std::string found = written();
    EXPECT_EQ(nlohmann::json::parse(found).at("models").at("dense").at("n-shot").size(), 4u)
        << all.output;
    EXPECT_EQ(count_of(found, "\"alias\": \"odd"), 3);
  }
  int stripped = 0;  // with the example and without
  for (const auto& entry : fs::recursive_directory_iterator(run() / "tasks")) {
    const fs::path& file = entry.path();
    const bool of_words = file.parent_path().filename().string().starts_with("words-");
    if (!of_words || file.filename() != "baselines-dense.json") continue;
    auto without = nlohmann::json::parse(read_text(file));
    EXPECT_EQ(without.erase("greedy"), 1u);
    write_text_atomically(file, without.dump());
    ++stripped;
  }
  EXPECT_EQ(stripped, 2);
  EXPECT_EQ(computed(tasks(both)), 1);

  EXPECT_EQ(tasks("--prompt poem").exit_code, kExitUsage);
  EXPECT_EQ(tasks((folder_ / "absent.jsonl").string()).exit_code, kExitUsage);
  fs::create_directory(folder_ / "again");
  fs::copy_file(quiz_file(), folder_ / "again" / "quiz.jsonl");
  expect_refused(tasks((folder_ / "again/quiz.jsonl").string()), " are called quiz");
  std::ofstream(folder_ / "bad.jsonl") << "{\"context\": \"a\"}\n";
  expect_refused(tasks((folder_ / "bad.jsonl").string()), "bad.jsonl:1: it has no \"choices\"");
  fs::remove(layout.trained_mark("experts/1"));
  expect_refused(tasks(), "experts/1 is not trained yet");
  // A model whose bytes are not those that it was written with is not handed on.
  const fs::path weights = run() / "experts/1/model.safetensors";
  const std::string whole = read_text(weights);
  std::string damaged_weights = whole;
  damaged_weights[whole.size() - 7] ^= 1;
  write_text_atomically(weights, damaged_weights);
  const std::string to_out = "export " + run().string() + " --out " + (folder_ / "out").string();
  expect_refused(run_alone(to_out), "experts/1/model.safetensors' is damaged");
  EXPECT_FALSE(fs::exists(folder_ / "out.partial"));
  write_text_atomically(weights, whole);
  // A router of another run: no mixture.
  fs::copy_file(run() / "routers/0/model.safetensors", run() / "routers/1/model.safetensors",
                fs::copy_options::overwrite_existing);
  expect_refused(run_alone(to_out), "does not belong to this mixture");
  EXPECT_FALSE(fs::exists(folder_ / "out.partial"));
}

}  // namespace
}  // namespace smalltalk
