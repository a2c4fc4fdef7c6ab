// The table of routing rules: the same from any number of ranks, and, where they say the same
// thing, the same as results.json.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "job_runner.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class Compare : public JobTest {
 protected:
  void SetUp() override {
    JobTest::SetUp();
    std::ofstream(experiment(), std::ios::app) << "tfidf_shards = true\n";
  }
  static nlohmann::json row_of(const nlohmann::json& comparison, const std::string& model,
                               const std::string& rule, int64_t prefix) {
    for (const auto& row : comparison.at("rows")) {
      if (row.at("model") == model && row.at("rule") == rule && row.at("prefix_tokens") == prefix) {
        return row;
      }
    }
    throw std::runtime_error("no row " + model + " " + rule);
  }
  std::string compare(const std::string& more = "") const {
    return "compare " + experiment().string() + " --out " + (folder_ / "run").string() + " " + more;
  }
  std::string written() const { return read_text(folder_ / "run/comparison-test.json"); }
};

TEST_F(Compare, AgreesWithTheResultsWhateverTheRanks) {
  ASSERT_EQ(run_job(2, launch("run")).exit_code, 0);
  const std::string arguments = "--prefixes 4,8,16,32 --temperatures 1,8";
  std::string first;
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    if (ranks > 1) fs::remove_all(folder_ / "run/evaluation");
    const Outcome outcome = run_job(ranks, compare(arguments));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "best in hindsight"), 1) << outcome.output;
    if (ranks == 1) first = written();
    EXPECT_EQ(written(), first);
  }

  const auto comparison = nlohmann::json::parse(first);
  const auto models = results("run").at("models");
  const auto expect_same = [&](const nlohmann::json& row, double perplexity) {
    EXPECT_NEAR(row.at("perplexity").get<double>() / perplexity, 1, 1e-6) << row.dump();
  };
  const auto perplexity_of = [&](const std::string& model, const char* which = "perplexity") {
    return models.at(model).at(which).at("all").get<double>();
  };
  const auto mixture = row_of(comparison, "mixture", "routers", 8);
  expect_same(mixture, perplexity_of("mixture"));
  EXPECT_NEAR(mixture.at("bits_per_byte").get<double>(),
              models.at("mixture").at("bits_per_byte").get<double>(), 1e-6);
  const auto dense = row_of(comparison, "dense", "", 0);
  expect_same(dense, perplexity_of("dense"));
  expect_same(row_of(comparison, "dense_large_batch", "", 0), perplexity_of("dense_large_batch"));
  expect_same(row_of(comparison, "random_shards", "in turn", 0), perplexity_of("random_shards"));
  for (const int64_t prefix : {4, 8, 16, 32}) {
    const auto row = row_of(comparison, "tfidf_kmeans", "TF-IDF", prefix);
    if (prefix == 8) expect_same(row, perplexity_of("tfidf_kmeans"));
  }
  // The four languages of this text are told by their n-grams: chosen by routers or by what those
  // teach, experts are worth the same, which is more than in turn.
  const auto ngrams = row_of(comparison, "mixture", "n-grams", 8);
  EXPECT_NEAR(ngrams.at("perplexity").get<double>() / mixture.at("perplexity").get<double>(), 1,
              0.05);
  EXPECT_LT(ngrams.at("inference_flops_per_sequence"), mixture.at("inference_flops_per_sequence"));
  const auto best = row_of(comparison, "mixture", "best in hindsight", 32);
  expect_same(best, perplexity_of("mixture", "oracle_perplexity"));

  EXPECT_EQ(comparison.at("reference"), "dense");
  EXPECT_EQ(dense.at("difference_nats_per_token"), 0);
  EXPECT_EQ(dense.at("verdict"), "undecided");
  const auto difference = [](const nlohmann::json& row) {
    return row.at("difference_nats_per_token").get<double>();
  };
  EXPECT_NEAR(difference(mixture),
              std::log(perplexity_of("mixture")) - std::log(perplexity_of("dense")), 1e-6);
  std::set<std::string> rows;
  for (const auto& row : comparison.at("rows")) {
    const auto place =
        nlohmann::json{row.at("model"),   row.at("rule"),        row.at("prefix_tokens"),
                       row.at("experts"), row.at("temperature"), row.at("step")};
    EXPECT_TRUE(rows.insert(place.dump()).second) << row.dump();
  }
  int ensembles = 0;
  for (const auto& row : comparison.at("rows")) {
    // No single expert a sequence does better than the best in hindsight.
    if (row.at("model") == "mixture" && row.at("experts") == 1) {
      EXPECT_GE(difference(row), difference(best)) << row.dump();
    }
    if (row.at("rule") == "ensemble by posterior") ++ensembles;
    const auto interval = row.at("difference_95_percent").get<std::vector<double>>();
    EXPECT_LE(interval[0], difference(row)) << row.dump();
    EXPECT_GE(interval[1], difference(row)) << row.dump();
  }
  EXPECT_EQ(ensembles, 4);  // 2 and 4 experts, two temperatures

  // The same text under another name says the same, and the routers' own prefix is always there.
  fs::copy_file(folder_ / "heldout.jsonl", folder_ / "copy.jsonl");
  const std::string copied =
      "--data copy --text " + (folder_ / "copy.jsonl").string() + " --temperatures 1,8";
  ASSERT_EQ(run_job(2, compare(copied + " --prefixes 4,16,32")).exit_code, 0);
  const auto copy = nlohmann::json::parse(read_text(folder_ / "run/comparison-copy.json"));
  EXPECT_EQ(copy.at("split"), "copy");
  EXPECT_EQ(copy.at("rows"), comparison.at("rows"));

  for (const auto& [more, complaint] : std::vector<std::pair<std::string, std::string>>{
           {"--data nowhere", "run/tokens/nowhere.h5"},
           {"--data test --text " + experiment().string(), "'test' is no name for other text"},
           {"--data ../x --text " + experiment().string(), "'../x' is no name for other text"},
           {"--steps 20", "step-00000020.safetensors is not there"},
           {"--steps 0", "no checkpoint of step 0"},
           {"--reference nobody", "there is no model nobody"},
           {"--prefixes 33", "2 to 32 tokens, not 33"},
           {"--temperatures 0", "temperature"}}) {
    const Outcome refused = run_job(1, compare(more));
    EXPECT_EQ(refused.exit_code, 1) << refused.output;
    EXPECT_EQ(count_of(refused.output, complaint), 1) << refused.output;
  }
}

// Under a constant rate, what a long training has done by a step is what one of that length does.
TEST_F(Compare, CheckpointsAreWhatAShorterTrainingGives) {
  const std::string settings = "--set expert.lr_decay=constant --set expert.keep_every=20";
  ASSERT_EQ(run_job(2, launch("long", settings)).exit_code, 0);
  ASSERT_EQ(run_job(2, launch("short", settings + " --set expert.train_steps=20")).exit_code, 0);
  const auto compared = [&](const std::string& run, const std::string& more) {
    const Outcome outcome = run_job(2, "compare " + experiment().string() + " --out " +
                                           (folder_ / run).string() + " " + settings + more);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    return nlohmann::json::parse(read_text(folder_ / run / "comparison-test.json"));
  };
  const auto all = compared("long", " --steps 20,100");
  const auto shorter = compared("short", " --set expert.train_steps=20");
  std::set<std::string> models;
  for (const auto& row : all.at("rows")) {
    if (row.at("step") != 20) continue;
    const std::string model = row.at("model");
    if (model.starts_with("dense")) continue;  // its steps are others
    models.insert(model);
    EXPECT_EQ(row.at("perplexity"),
              row_of(shorter, model, row.at("rule"), row.at("prefix_tokens")).at("perplexity"));
  }
  EXPECT_EQ(models, (std::set<std::string>{"mixture", "random_shards", "tfidf_kmeans"}));
  int dense = 0;  // of which only one is trained for so long
  for (const auto& row : all.at("rows")) dense += row.at("step") == 100;
  EXPECT_EQ(dense, 1);

  // A checkpoint of another training is not taken for the model's.
  fs::copy_file(folder_ / "long/experts/1/checkpoints/step-00000020.safetensors",
                folder_ / "long/experts/0/checkpoints/step-00000020.safetensors",
                fs::copy_options::overwrite_existing);
  const Outcome refused =
      run_job(2, "compare " + experiment().string() + " --out " + (folder_ / "long").string() +
                     " " + settings + " --steps 20");
  EXPECT_EQ(refused.exit_code, 1) << refused.output;
  EXPECT_GE(count_of(refused.output, "does not belong to this mixture: its unit is experts/1"), 1)
      << refused.output;
}

}  // namespace
}  // namespace smalltalk
