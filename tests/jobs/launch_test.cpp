// The main job from text to results, as a user starts it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <thread>

#include "job_runner.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class Launch : public JobTest {
 protected:
  std::vector<std::string> models(const std::string& out) const {
    std::vector<std::string> bytes;
    for (const std::string name :
         {"experts/0", "experts/1", "experts/2", "experts/3", "baselines/dense",
          "baselines/dense_large_batch", "baselines/random_shards/3"}) {
      bytes.push_back(read_text(folder_ / out / name / "model.safetensors"));
    }
    return bytes;
  }

  // When each file was written that took the run time to make.
  std::map<std::string, fs::file_time_type> computed(const std::string& out) const {
    std::map<std::string, fs::file_time_type> written;
    for (const char* name :
         {"tokens", "routers", "rounds", "shards", "experts", "baselines", "evaluation"}) {
      for (const auto& file : fs::recursive_directory_iterator(folder_ / out / name)) {
        if (file.is_regular_file()) written[file.path().string()] = fs::last_write_time(file);
      }
    }
    return written;
  }
};

// Each document at the beginning of a sequence if it can be, alone in what it sees.
TEST_F(Launch, DocumentsMayBeginSequences) {
  const std::string packing = "--set data.packing=documents --set data.document_mask=true ";
  Outcome outcome = run_job(2, launch("run", packing));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, " % of the tokens are padding"), 3) << outcome.output;
  // Every token that is no padding is a target once.
  const TokenFile test(folder_ / "run/tokens/test.h5");
  double bytes = 0;
  std::ifstream text(folder_ / "heldout.jsonl");
  for (std::string line; std::getline(text, line);) {
    bytes += static_cast<double>(
        nlohmann::json::parse(line).at("text").get_ref<const std::string&>().size());
  }
  const auto targets = static_cast<double>(test.info().num_tokens - test.info().padding);
  for (const char* model : {"mixture", "dense", "random_shards"}) {
    const auto figures = results("run").at("models").at(model);
    const double bits = std::log2(figures.at("perplexity").at("all").get<double>());
    EXPECT_NEAR(figures.at("bits_per_byte").get<double>(), bits * targets / bytes, 1e-9) << model;
  }
  // Who reads whole documents says so to whoever loads it.
  const auto config = nlohmann::json::parse(read_text(folder_ / "run/experts/0/config.json"));
  EXPECT_EQ(config.at("smalltalk_document_end"), 2);
  EXPECT_EQ(config.at("smalltalk_document_mask"), true);
  // The tokens are of this length of sequences.
  outcome = run_job(1, launch("run", packing + "--set data.seq_length=16"));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(count_of(outcome.output, "32                       16                       tokens, "),
            1)
      << outcome.output;
}

// Lory and the dense model at equal FLOPs, each by a group of its own.
TEST_F(Launch, TrainsLoryWithoutAMixture) {
  const std::string lory =
      "--set mixture.experts=0 --set baselines.dense_large_batch=false --set lory.experts=3 "
      "--set lory.segment_tokens=8 ";
  const auto outputs = [&](const std::string& out) {
    std::vector<std::string> bytes;
    for (const std::string model : {"baselines/dense", "lory"}) {
      bytes.push_back(read_text(folder_ / out / model / "model.safetensors"));
    }
    return bytes;
  };
  Outcome outcome = run_job(2, launch("run", lory + "--set mixture.group_size=1"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "0 experts, 2 ranks on 1 node: 2 groups of 1 rank"), 1)
      << outcome.output;
  for (const char* file : {"routers", "shards.h5", "experts", "scores"}) {
    EXPECT_FALSE(fs::exists(folder_ / "run" / file)) << file;
  }
  const nlohmann::json r = results("run");
  EXPECT_EQ(r.at("experts"), 0);
  EXPECT_FALSE(r.contains("routing"));
  EXPECT_FALSE(r.contains("per_expert"));
  const auto &dense = r.at("models").at("dense"), &own = r.at("models").at("lory");
  EXPECT_EQ(r.at("models").size(), 2u);
  // With the steps of an expert; Lory has as many FLOPs, or one step's more.
  const double flops = dense.at("train_flops");
  EXPECT_GE(own.at("train_flops").get<double>(), flops);
  EXPECT_LT(own.at("train_flops").get<double>(), flops * (1 + 2.0 / own.at("steps").get<int>()));
  EXPECT_LT(own.at("steps").get<int>(), dense.at("steps").get<int>());
  for (const char* name : {"perplexity", "leaky_perplexity", "first_segment_perplexity"}) {
    for (const char* part : {"all", "after_segment"}) {
      EXPECT_LT(own.at(name).at(part).get<double>(), 150) << name << part;
    }
  }
  EXPECT_NE(own.at("leaky_perplexity").at("all"), own.at("perplexity").at("all"));
  const std::string page = read_text(folder_ / "run/report.html");
  EXPECT_EQ(count_of(page, "<h1>Lory reaches test perplexity "), 1);
  EXPECT_EQ(count_of(page, "id=\"rounds\""), 0);

  // What needs a mixture says so; all else works.
  const std::string out = " --out " + (folder_ / "run").string() + " ";
  const std::string here = experiment().string() + out + lory + "--set mixture.group_size=1 ";
  for (const std::string job : {"route ", "shard "}) {
    outcome = run_job(1, job + here);
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "mixture.experts = 0"), 1) << outcome.output;
  }
  const std::string generate = "generate " + (folder_ / "run").string() + " 'gab fed' ";
  EXPECT_EQ(count_of(run_alone(generate).output, "mixture.experts = 0"), 1);
  outcome = run_alone(generate + "--model lory");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  outcome = run_job(2, "compare " + here);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "first segment leaks"), 1) << outcome.output;
  for (const char* job : {"status ", "inspect "}) {
    outcome = run_alone(job + (folder_ / "run").string());
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "routers"), 0) << outcome.output;
  }

  // Stage by stage, by one rank.
  const std::string alone = experiment().string() + " --out " + (folder_ / "alone").string() + " " +
                            lory + "--set mixture.group_size=1 ";
  for (const char* stage :
       {"prepare ", "train --model baselines/dense ", "train --model lory ", "evaluate "}) {
    outcome = run_job(1, stage + alone);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  }
  EXPECT_TRUE(outputs("alone") == outputs("run"));
}

TEST_F(Launch, LeavesAWholeRunWithNoByteBetweenGroups) {
  const Outcome outcome = run_job(2, launch("run"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const char* file :
       {"shards.h5", "random_shards.h5", "routing.jsonl", "routers/3/model.safetensors",
        "experts/3/model.safetensors", "experts/3/metrics.jsonl", "report.html"}) {
    EXPECT_TRUE(fs::exists(folder_ / "run" / file)) << file;
  }
  const nlohmann::json r = results("run");
  EXPECT_EQ(r.at("schema"), 1);
  EXPECT_EQ(r.at("communication").at("world_bytes_after_shards"), 0);
  // Two E-steps (round 1 is random); the sharding sends no scores.
  EXPECT_EQ(r.at("communication").at("collectives"), 2);
  const auto& models = r.at("models");
  for (const char* dense : {"dense", "dense_large_batch"}) {
    EXPECT_GE(models.at(dense).at("train_flops").get<double>(),
              models.at("mixture").at("train_flops").get<double>());
  }
  double share = 0;
  for (const auto& expert : r.at("per_expert")) share += expert.at("eval_share").get<double>();
  EXPECT_NEAR(share, 1, 1e-9);
  // A uniform guess over the vocabulary has perplexity 300: everything must have learned something.
  for (const auto& [name, model] : models.items()) {
    EXPECT_LT(model.at("perplexity").at("all").get<double>(), 150) << name;
  }

  // The ledgers by themselves: after the shards nothing but calls inside a group.
  int ledgers = 0;
  for (const auto& file : fs::directory_iterator(folder_ / "run" / "ledger")) {
    const auto ledger = nlohmann::json::parse(read_text(file.path()));
    EXPECT_EQ(ledger.at("world_calls_after_shards"), 0) << ledger.dump(1);
    ++ledgers;
  }
  EXPECT_EQ(ledgers, 2);

  // Any sequence can be explained, and any text.
  const std::string explain = "timeout 60 " + from_environment("SMALLTALK_BINARY") + " explain " +
                              (folder_ / "run").string() + " --json ";
  const auto answer = [&](const std::string& question) {
    const Outcome told = run_command(explain + question);
    EXPECT_EQ(told.exit_code, 0) << told.output;
    return nlohmann::json::parse(told.output.substr(told.output.find("{\"")));
  };
  const Shards shards = read_shards(folder_ / "run" / "shards.h5");
  EXPECT_EQ(answer("--sequence 7").at("expert"), shards.expert[7]);
  EXPECT_EQ(answer("--text 'some words of a text'").at("experts").size(), 4u);

  // Its models for other programs, which are refused a folder that is there.
  const std::string to_export = "timeout 60 " + from_environment("SMALLTALK_BINARY") + " export " +
                                (folder_ / "run").string() + " --out " +
                                (folder_ / "exported").string();
  const Outcome exported = run_command(to_export);
  EXPECT_EQ(exported.exit_code, 0) << exported.output;
  const auto lock = nlohmann::json::parse(read_text(folder_ / "exported/mixture.json"));
  EXPECT_EQ(lock.at("experiment"), r.at("provenance").at("experiment"));
  EXPECT_EQ(lock.at("models").size(), 4u + 4 + 2 + 4);  // experts, routers, dense, control
  for (const auto& [model, hash] : lock.at("models").items()) {
    for (const char* file : {"model.safetensors", "config.json"}) {
      EXPECT_EQ(read_text(folder_ / "exported" / model / file),
                read_text(folder_ / "run" / model / file));
    }
    EXPECT_TRUE(fs::exists(folder_ / "exported" / model / "tokenizer.json"));
  }
  EXPECT_EQ(run_command(to_export).exit_code, 1);
  EXPECT_FALSE(fs::exists(folder_ / "exported.partial"));

  // The same command again computes nothing and changes nothing.
  const std::string before = read_text(folder_ / "run" / "results.json");
  const auto computed_before = computed("run");
  const Outcome again = run_job(2, launch("run"));
  EXPECT_EQ(again.exit_code, 0) << again.output;
  EXPECT_EQ(computed("run"), computed_before);
  auto results_again = results("run");
  auto results_before = nlohmann::json::parse(before);
  results_again.erase("communication");  // gained the second start's ledgers
  results_before.erase("communication");
  EXPECT_EQ(results_again, results_before);
}

TEST_F(Launch, AssignmentIsTheSameForAnyNumberOfRanks) {
  std::vector<Shards> shards;
  for (const int ranks : {1, 2, 4, 5}) {
    const std::string out = "run" + std::to_string(ranks);
    const Outcome outcome = run_job(ranks, launch(out));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
    shards.push_back(read_shards(folder_ / out / "shards.h5"));
    EXPECT_EQ(shards.back().expert, shards.front().expert) << ranks << " ranks";
    EXPECT_EQ(read_shards(folder_ / out / "rounds" / "round-003.h5").expert,
              read_shards(folder_ / "run1" / "rounds" / "round-003.h5").expert);
  }
  // Groups of one rank in each case: the models are the same too, byte for byte.
  EXPECT_EQ(models("run4"), models("run1"));
}

TEST_F(Launch, KilledAnywhereAndStartedAgainEndsTheSame) {
  const Outcome whole = run_job(2, launch("whole"));
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  const auto expected = models("whole");
  for (const double share : {0.15, 0.35, 0.55, 0.75}) {
    const std::string out = "killed" + std::to_string(static_cast<int>(100 * share));
    // What a process leaves that dies while it writes beside the ledgers' place.
    fs::create_directories(folder_ / out / "ledger");
    std::ofstream(folder_ / out / "ledger" / ".tmp-host-1-1-rank-0.json");
    // All processes of the job die at once, without a chance to tidy up.
    const std::string limit = std::to_string(share * whole.seconds);
    run_command("setsid timeout --signal=KILL " + limit + " sh -c '" + command(2, launch(out)) +
                "'; pkill -KILL -f -- '--out " + (folder_ / out).string() + "'; true");
    const Outcome again = run_job(2, launch(out));
    ASSERT_EQ(again.exit_code, 0) << "killed at " << share << ": " << again.output;
    EXPECT_EQ(models(out), expected) << "killed at " << share;
  }
}

TEST_F(Launch, StageByStageGivesTheSameModels) {
  ASSERT_EQ(run_job(2, launch("whole")).exit_code, 0);
  const std::string tail = " " + experiment().string() + " --out " + (folder_ / "stages").string();
  for (const std::string stage : {"prepare", "route", "shard"}) {
    const Outcome outcome = run_job(2, stage + tail);
    ASSERT_EQ(outcome.exit_code, 0) << stage << ": " << outcome.output;
  }
  for (const std::string model :
       {"experts/0", "experts/1", "experts/2", "experts/3", "baselines/dense",
        "baselines/dense_large_batch", "baselines/random_shards/0", "baselines/random_shards/1",
        "baselines/random_shards/2", "baselines/random_shards/3"}) {
    const Outcome outcome = run_job(1, "train" + tail + " --model " + model);
    ASSERT_EQ(outcome.exit_code, 0) << model << ": " << outcome.output;
  }
  ASSERT_EQ(run_job(3, "evaluate" + tail).exit_code, 0);
  ASSERT_EQ(run_job(1, "report " + (folder_ / "stages").string()).exit_code, 0);
  EXPECT_EQ(models("stages"), models("whole"));
  EXPECT_EQ(results("stages").at("models"), results("whole").at("models"));
}

// A group of two cuts Lory's experts in halves.
TEST_F(Launch, AGroupOfTwoLearnsWhatOneRankLearns) {
  const std::string more =
      "--set mixture.experts=2 --set baselines.random_shards=false "
      "--set baselines.dense_large_batch=false --set lory.experts=3 --set lory.segment_tokens=12";
  ASSERT_EQ(run_job(1, launch("one", more)).exit_code, 0);
  const Outcome two = run_job(
      4, launch("two", more + " --set device.trace_steps=3:5 --set lory.tensor_parallel=true"));
  ASSERT_EQ(two.exit_code, 0) << two.output;
  // The trace shows both ranks of a group, by clocks that agree on when a step is.
  const auto trace = nlohmann::json::parse(read_text(folder_ / "two/experts/1/trace.json"));
  std::map<int, std::pair<double, double>> step;  // by rank: begin and end, microseconds
  for (const auto& event : trace.at("traceEvents")) {
    if (event.at("name") != "step 4") continue;
    const double begin = event.at("ts");
    step[event.at("pid")] = {begin, begin + event.at("dur").get<double>()};
  }
  ASSERT_EQ(step.size(), 2u);
  EXPECT_LT(std::max(step[0].first, step[1].first), std::min(step[0].second, step[1].second));
  EXPECT_EQ(results("two").at("communication").at("world_bytes_after_shards"), 0);
  // Sums in another order, 40 steps: the same to a few units in float32's fourth digit.
  for (const char* model : {"mixture", "dense", "lory"}) {
    const auto perplexity = [&](const std::string& out) {
      return results(out).at("models").at(model).at("perplexity").at("all").get<double>();
    };
    EXPECT_NEAR(perplexity("two") / perplexity("one"), 1, 1e-3) << model;
  }
}

// How a Lory model weighs its experts is a cell like others, whichever ranks compute it, and what
// does nothing is said.
TEST_F(Launch, TellsHowLoryWeighsItsExperts) {
  const std::string lory =
      "--set mixture.experts=0 --set baselines.dense=false --set baselines.random_shards=false "
      "--set baselines.dense_large_batch=false --set lory.experts=4 --set lory.segment_tokens=8 "
      "--set lory.train_steps=40 --set expert.num_layers=2";
  const Outcome first = run_job(2, launch("run", lory));
  ASSERT_EQ(first.exit_code, 0) << first.output;
  const auto routing = results("run").at("models").at("lory").at("routing");
  EXPECT_EQ(routing.at("experts"), 4);
  // Three of four segments are weighed by another, in every sequence of 32 tokens.
  const TokenFile test(folder_ / "run/tokens/test.h5");
  EXPECT_EQ(routing.at("segments"), 3 * test.num_sequences(32));
  ASSERT_EQ(routing.at("layers").size(), 2u);
  for (const auto& layer : routing.at("layers")) {
    double sum = 0;
    for (const double weight : layer.at("mean_weights")) sum += weight;
    EXPECT_NEAR(sum, 1, 1e-5);
    EXPECT_LE(layer.at("entropy"), std::log(4) + 1e-5);
    EXPECT_GE(layer.at("largest_weight"), 0.25);
  }
  ASSERT_EQ(routing.at("by_domain").size(), 2u);  // the first is the middle one, too
  for (const auto& layer : routing.at("by_domain")) {
    ASSERT_EQ(layer.at("weights").size(), routing.at("domains").size());
    EXPECT_EQ(layer.at("weights")[0].size(), 4u);
  }
  const std::string page = read_text(folder_ / "run/report.html");
  EXPECT_EQ(count_of(page, "id=\"lory\""), 1);
  const std::vector<std::pair<const char*, const char*>> warnings = {
      {"dead_routers", "weigh all experts all but alike in these layers"},
      {"dead_experts", "that weigh more than 2 / E in no segment"}};
  for (const auto& [list, text] : warnings) {
    const int times = routing.at(list).empty() ? 0 : 1;
    EXPECT_EQ(count_of(first.output, text), times) << first.output;
    EXPECT_EQ(count_of(page, text), times);
  }

  const fs::path cell = folder_ / "run/evaluation/test/lory-routing.h5";
  const std::string bytes = read_text(cell);
  const auto scored = fs::last_write_time(folder_ / "run/evaluation/test/lory.h5");
  fs::remove(cell);
  const Outcome again = run_job(
      3, "evaluate " + experiment().string() + " --out " + (folder_ / "run").string() + " " + lory);
  ASSERT_EQ(again.exit_code, 0) << again.output;
  EXPECT_EQ(read_text(cell), bytes);
  EXPECT_EQ(fs::last_write_time(folder_ / "run/evaluation/test/lory.h5"), scored);
  EXPECT_EQ(results("run").at("models").at("lory").at("routing"), routing);
  // Downstream tasks are answered both ways.
  write_text_atomically(folder_ / "quiz.jsonl",
                        "{\"context\": \"abc abd\", \"choices\": [\"abe\", \"ab\"], "
                        "\"answer\": 0}\n");
  const std::string tasks = "tasks " + experiment().string() + " --out " +
                            (folder_ / "run").string() + " " + lory + " --task " +
                            (folder_ / "quiz.jsonl").string();
  const Outcome answered = run_job(1, tasks);
  ASSERT_EQ(answered.exit_code, 0) << answered.output;
  const auto answers = nlohmann::json::parse(read_text(folder_ / "run/tasks.json")).at("models");
  for (const char* model : {"lory", "lory_by_prompt"}) {
    EXPECT_EQ(answers.at(model).at("n-samples").at("quiz").at("effective"), 1) << model;
  }
  EXPECT_EQ(count_of(answered.output, " choices, "), 2) << answered.output;
  EXPECT_EQ(count_of(run_job(1, tasks).output, " choices, "), 0);
  // The weights of a model that is trained anew are others.
  fs::remove_all(folder_ / "run/lory");
  ASSERT_EQ(run_job(1, launch("run", lory + " --set lory.lr=0.03")).exit_code, 0);
  EXPECT_NE(read_text(cell), bytes);
  // A single segment is weighed by nothing but itself.
  ASSERT_EQ(run_job(2, launch("whole", lory + " --set lory.segment_tokens=32")).exit_code, 0);
  EXPECT_TRUE(results("whole").at("models").at("lory").at("routing").is_null());
  EXPECT_EQ(count_of(read_text(folder_ / "whole/report.html"), "has no routing of Lory"), 1);
}

TEST_F(Launch, DryRunWritesNothing) {
  const Outcome outcome = run_job(3, launch("dry", "--dry-run"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "FLOPs, experts"), 1) << outcome.output;
  EXPECT_FALSE(fs::exists(folder_ / "dry"));
}

}  // namespace
}  // namespace smalltalk
