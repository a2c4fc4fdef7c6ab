// A sweep: the same tables from any number of ranks and from parts, and what they say is what the
// runs say.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "job_runner.hpp"
#include "smalltalk/data/token_file.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class SweepJob : public JobTest {
 protected:
  void SetUp() override {
    JobTest::SetUp();
    write_sweep("main", "");
  }
  void write_sweep(const std::string& reference, const std::string& more) const {
    std::ofstream(folder_ / "sweep.toml")
        << "experiment = \"" << experiment().string() << "\"\n"
        << "set = [\"expert.train_steps=20\", \"expert.keep_every=10\", "
           "\"baselines.dense_large_batch=false\"]\n"
           "seeds = [1, 2]\n"
           "[[run]]\nname = \"main\"\n"
           "[[run]]\nname = \"two\"\nset = [\"mixture.experts=2\", \"mixture.assignment=argmax\", "
           "\"baselines.dense=false\", \"baselines.random_shards=false\"]\n"
           "[[data]]\nname = \"again\"\nfiles = \""
        << (folder_ / "heldout.jsonl").string()
        << "\"\n[[table]]\nname = \"all\"\ntitle = \"Which?\"\n"
           "rows = [{ run = [\"main\", \"two\"] }, { run = \"main\", model = \"mixture\", "
           "rule = \"routers\", prefix = 16, label = \"longer\" }]\n"
           "reference = { run = \""
        << reference
        << "\", model = \"dense\" }\n"
           "[[table]]\nname = \"steps\"\ndata = \"again\"\n"
           "rows = [{ run = \"main\", model = \"mixture\", step = 10 }, "
           "{ run = [\"main\", \"two\"], model = \"mixture\" }]\n"
           "reference = { run = \"main\", model = \"dense\" }\n"
        << more;
  }
  std::string sweep(const std::string& out, const std::string& more = "") const {
    return "sweep " + (folder_ / "sweep.toml").string() + " --out " + (folder_ / out).string() +
           " " + more;
  }
  std::string tables(const std::string& out) const {
    return read_text(folder_ / out / "sweep.json");
  }
  nlohmann::json results_of(const std::string& run) const {
    return nlohmann::json::parse(read_text(folder_ / "a/runs" / run / "results.json"));
  }
};

// More steps in the file are more steps in its tables, on every text and at every checkpoint.
TEST_F(SweepJob, MoreStepsAreTrainedOn) {
  const auto write = [&](int steps) {
    std::ofstream(folder_ / "sweep.toml")
        << "experiment = \"" << experiment().string() << "\"\n"
        << "set = [\"expert.train_steps=" << steps
        << "\", \"expert.lr_decay=constant\", \"expert.keep_every=10\", "
           "\"baselines.dense_large_batch=false\", \"baselines.random_shards=false\", "
           "\"baselines.dense_warmup_steps=4\"]\nseeds = [1]\n[[run]]\nname = \"main\"\n"
           "[[data]]\nname = \"again\"\nfiles = \""
        << (folder_ / "heldout.jsonl").string()
        << "\"\n[[table]]\nname = \"all\"\ntitle = \"Which?\"\ndata = \"again\"\n"
           "rows = [{ run = \"main\", model = \"mixture\" }, "
           "{ run = \"main\", model = \"mixture\", step = 10 }]\n"
           "reference = { run = \"main\", model = \"dense\" }\n";
  };
  write(20);
  ASSERT_EQ(run_job(2, sweep("a")).exit_code, 0);
  write(30);
  // Trained by the command that --list prints, and what is measured of it by the sweep.
  const std::string run = (folder_ / "a/runs/main-seed-1").string();
  const std::string list = run_job(1, sweep("a", "--list")).output;
  const size_t at = list.find("launch ");
  ASSERT_NE(at, std::string::npos) << list;
  ASSERT_EQ(run_job(2, list.substr(at, list.find('\n', at) - at)).exit_code, 0);
  ASSERT_EQ(run_job(1, sweep("a")).exit_code, 0);
  ASSERT_EQ(run_job(1, sweep("b")).exit_code, 0);
  EXPECT_EQ(tables("a"), tables("b"));
}

// Tokens are shared by runs of the same text only as far as they are laid out alike.
TEST_F(SweepJob, RunsMayPackDocuments) {
  std::ofstream(folder_ / "sweep.toml")
      << "experiment = \"" << experiment().string() << "\"\n"
      << "set = [\"expert.train_steps=4\", \"baselines.dense_large_batch=false\", "
         "\"baselines.random_shards=false\"]\nseeds = [1]\n"
         "[[run]]\nname = \"plain\"\n"
         "[[run]]\nname = \"packed\"\nset = [\"data.packing=documents\"]\n"
         "[[table]]\nname = \"all\"\ntitle = \"Which?\"\n"
         "rows = [{ run = [\"plain\", \"packed\"], model = \"mixture\" }]\n"
         "reference = { run = [\"plain\", \"packed\"], model = \"dense\" }\n";
  const Outcome outcome = run_job(2, sweep("a"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const auto tokens = [&](const std::string& run) {
    return TokenFile(folder_ / "a/runs" / run / "tokens/test.h5").info();
  };
  EXPECT_EQ(tokens("plain-seed-1").padding, 0);
  EXPECT_EQ(tokens("packed-seed-1").num_tokens,
            tokens("plain-seed-1").num_tokens + tokens("packed-seed-1").padding);
  EXPECT_EQ(tokens("packed-seed-1").packed_length, 32);
}

TEST_F(SweepJob, IsTheSameForAnyRanksAndParts) {
  Outcome outcome = run_job(1, sweep("a"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "**Which?**"), 1) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "| main: mixture, step 10 |"), 1) << outcome.output;
  const auto all = nlohmann::json::parse(tables("a")).at("tables").at(0);
  const std::string counts = all.at("sequences").dump() + " test sequences of " +
                             all.at("documents").dump() + " documents; ";
  EXPECT_EQ(count_of(outcome.output, counts), 1) << counts << outcome.output;
  outcome = run_job(4, sweep("b"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(tables("b"), tables("a"));

  // Two elements of an array at once; the tables come when both are done.
  outcome = run_command("(" + command(1, sweep("c", "--part 0 --parts 2")) + " & " +
                        command(1, sweep("c", "--part 1 --parts 2")) + "; wait %1)");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_FALSE(fs::exists(folder_ / "c/sweep.json"));
  outcome = run_job(2, sweep("c"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "evaluated"), 0) << outcome.output;
  EXPECT_EQ(tables("c"), tables("a"));

  const std::string page = read_text(folder_ / "c/report.html");
  EXPECT_EQ(count_of(page, "Which?</h2>"), 1);
  EXPECT_GT(count_of(page, "href=\"runs/two-seed-2/report.html\""), 0);

  const auto table = nlohmann::json::parse(tables("a")).at("tables").at(0);
  EXPECT_EQ(table.at("seeds"), (std::vector<int>{1, 2}));
  const auto& rows = table.at("rows");
  ASSERT_EQ(rows.size(), 5U) << rows.dump(1);
  const auto perplexity = [&](const std::string& run, const char* model) {
    return results_of(run).at("models").at(model).at("perplexity").at("all").get<double>();
  };
  for (const auto& row : rows) {
    if (row.at("label") == "longer") continue;
    const std::string run = row.at("run");
    const std::string model = row.at("model");
    double loss = 0, dense = 0;
    for (const std::string seed : {"-seed-1", "-seed-2"}) {
      loss += std::log(perplexity(run + seed, model.c_str())) / 2;
      dense += std::log(perplexity("main" + seed, "dense")) / 2;
      EXPECT_EQ(row.at("train_flops"),
                results_of(run + seed).at("models").at(model).at("train_flops"));
    }
    EXPECT_NEAR(row.at("perplexity").get<double>() / std::exp(loss), 1, 1e-6) << row.dump();
    EXPECT_NEAR(row.at("difference_nats_per_token").get<double>(), loss - dense, 1e-6);
    EXPECT_EQ(row.at("reference").get<bool>(), run == "main" && model == "dense");
  }

  // Under another name the same text says the same.
  const auto again = nlohmann::json::parse(tables("a")).at("tables").at(1);
  EXPECT_EQ(again.at("data"), "again");
  ASSERT_EQ(again.at("rows").size(), 3U);
  for (const auto& row : again.at("rows")) {
    EXPECT_EQ(row.at("compared_with"), "main: dense");
    for (const auto& other : rows) {
      const bool same = other.at("run") == row.at("run") && other.at("model") == "mixture" &&
                        other.at("label") != "longer";
      if (same && row.at("step") == 0) {
        EXPECT_EQ(row.at("perplexity"), other.at("perplexity"));
      } else if (same && row.at("run") == "main") {  // half of its experts' steps, all its routing
        const auto model = results_of("main-seed-1").at("models").at("mixture");
        const double routing =
            model.at("router_flops").get<double>() + model.at("sharding_flops").get<double>();
        EXPECT_GT(row.at("perplexity"), other.at("perplexity"));
        EXPECT_NEAR(row.at("train_flops").get<double>(),
                    (model.at("train_flops").get<double>() + routing) / 2, 1);
      }
    }
  }
  const auto seconds = nlohmann::json::parse(read_text(folder_ / "a/seconds.json"));
  EXPECT_GT(seconds.at("two").at("mixture").get<double>(), 0);

  // A model that is asked for later is trained, and nothing else.
  write_sweep("main", "");
  std::string text = read_text(folder_ / "sweep.toml");
  const std::string off = "\"baselines.dense_large_batch=false\"";
  text.replace(text.find(off), off.size(), "\"baselines.dense_large_batch=true\"");
  write_text_atomically(folder_ / "sweep.toml", text);
  outcome = run_job(2, sweep("a"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "main: dense_large_batch"), 1) << outcome.output;
  // Of 4 runs on 3 texts, and of main's at a checkpoint.
  EXPECT_EQ(count_of(outcome.output, "evaluated"), 4 * 3 + 2) << outcome.output;
}

TEST_F(SweepJob, ARunThatFailsLeavesTheOthersAlone) {
  std::ofstream(folder_ / "sweep.toml")
      << "experiment = \"" << experiment().string() << "\"\n"
      << "set = [\"expert.train_steps=4\", \"baselines.dense_large_batch=false\", "
         "\"baselines.random_shards=false\"]\nseeds = [1, 2]\n"
         "[[run]]\nname = \"good\"\n"
         "[[run]]\nname = \"bad\"\nset = [\"expert.lr=1e30\", \"expert.grad_clip=0\", "
         "\"expert.train_steps=8\"]\n"
         "[[table]]\nname = \"all\"\ntitle = \"Which?\"\n"
         "rows = [{ run = [\"good\", \"bad\"], model = \"mixture\" }]\n"
         "reference = { run = \"good\", model = \"dense\" }\n";
  const Outcome outcome = run_job(2, sweep("a"));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  for (const std::string seed : {"1", "2"}) {
    EXPECT_TRUE(fs::exists(folder_ / "a/runs" / ("good-seed-" + seed) / "results.json"));
    EXPECT_GE(count_of(outcome.output, "[sweep bad-seed-" + seed + "] error: "), 1)
        << outcome.output;
  }
  EXPECT_FALSE(fs::exists(folder_ / "a/sweep.md"));
}

TEST_F(SweepJob, RefusesWhatItCannotCompareBeforeItComputes) {
  const auto refused = [&](const std::string& complaint) {
    const Outcome outcome = run_job(2, sweep("x"));
    EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
    EXPECT_EQ(count_of(outcome.output, complaint), 1) << outcome.output;
    EXPECT_FALSE(fs::exists(folder_ / "x/runs/main-seed-1/experiment.toml")) << complaint;
  };
  write_sweep("nobody", "");
  refused("'nobody' is no [[run]]");
  write_sweep("main", "[[run]]\nname = \"odd\"\nset = \"mixture.prefix_tokens=999\"\n");
  refused("run odd: ");
  write_sweep("main", "[[run]]\nname = \"odd\"\nset = \"mixture.sequences_per_round=1000000\"\n");
  refused("run odd: data.train");
  write_sweep("main",
              "[[table]]\nname = \"odd\"\nrows = [{ run = \"main\", step = 7 }]\n"
              "reference = { run = \"main\", model = \"dense\" }\n");
  refused("its step 7, which is no checkpoint");
  write_sweep("main",
              "[[table]]\nname = \"odd\"\nrows = [{ run = \"main\", model = \"dens\" }]\n"
              "reference = { run = \"main\", model = \"dense\" }\n");
  refused("table odd: there is no model 'dens'");
}

}  // namespace
}  // namespace smalltalk
