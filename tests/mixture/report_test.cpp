// The report of small runs made here: complete, incomplete, hostile.
#include "smalltalk/mixture/report/report.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "balanced_html.hpp"
#include "report_inputs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_writer.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

class ReportTest : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) const {
    write_text_atomically(run_ / name, text);
  }
  void write_results(const json& value) const { write("results.json", value.dump()); }
  void write_metrics(const std::string& folder, double loss) const {
    std::string rows;
    for (int step = 1; step <= 50; ++step) {
      rows += json{{"step", step},
                   {"tokens", 256 * step},
                   {"loss_metrics/global_avg_loss", loss + 3.0 / step}}
                  .dump() +
              "\n";
    }
    write(folder + "/metrics.jsonl", rows);
  }
  void write_complete_run() const {
    write_results(results());
    write("experiment.toml", "name = \"a run\"\n");
    write("comparison-test.json", comparison().dump());
    write("sharding.json", json{{"sequences", 100}, {"displaced", 7}}.dump());
    write("routing.jsonl",
          json{{"round", 1}, {"sequences", 64}, {"random", true}, {"probe", 16}}.dump() + "\n" +
              json{{"round", 2},
                   {"sequences", 64},
                   {"probe", 16},
                   {"displaced", 10},
                   {"mean_score", -50.0},
                   {"mean_best_score", -49.0},
                   {"argmax_counts", {30, 34}},
                   {"router_loss", {3.0, 3.1}}}
                  .dump() +
              "\n");
    write_metrics("experts/0", 2.9);
    write_metrics("experts/1", 2.7);
    write_metrics("baselines/dense", 3.0);
    write_metrics("baselines/random_shards/0", 3.2);
    write_metrics("baselines/random_shards/1", 3.2);
  }
  std::string page() const {
    std::string html = render_report(run_.path());
    EXPECT_EQ(unbalanced(html), "");
    // Spaces that do not break are for the eye; the tests read plain ones.
    for (size_t at; (at = html.find("\u00a0")) != std::string::npos;) html.replace(at, 2, " ");
    return html;
  }
  static bool has(const std::string& html, const std::string& part) {
    return html.find(part) != std::string::npos;
  }

  TemporaryFolder run_;
};

TEST_F(ReportTest, CheckerFindsWhatIsBroken) {
  EXPECT_EQ(unbalanced("<p>a<br/>b</p>"), "");
  EXPECT_EQ(unbalanced("<p><b>a</p>"), "</p>");
  EXPECT_EQ(unbalanced("<p>"), "<p>");
  EXPECT_NE(unbalanced("<p>1 < 2</p>"), "");
}

TEST_F(ReportTest, CompleteRunSaysItsResult) {
  write_complete_run();
  const std::string html = page();
  EXPECT_TRUE(has(html,
                  "The mixture of 2 experts reaches test perplexity 18.00, 10.0 % below the "
                  "dense model of the same size at equal training FLOPs."));
  EXPECT_TRUE(has(html, "25.0 %"));  // below random shards
  EXPECT_TRUE(has(html, "0 bytes"));
  EXPECT_TRUE(has(html, "7 of them (7.0 %)"));
  EXPECT_TRUE(has(html, "640 test sequences of 37 documents"));
  EXPECT_TRUE(has(html, "-10.00&nbsp;(-20.00&nbsp;to&nbsp;+10.00)&nbsp;%"));
  EXPECT_EQ(html, page());
}

TEST_F(ReportTest, ComparesWithTheBetterDenseModel) {
  json value = results();
  value["models"]["dense_large_batch"] = model(19.0, 1.5e12);
  write_results(value);
  EXPECT_TRUE(has(page(),
                  "18.00, 5.3 % below the better of two dense models of the same size, "
                  "which had 50.0 % more training FLOPs."));
}

TEST_F(ReportTest, SaysWhenTheMixtureLoses) {
  json value = results();
  value["models"]["dense"] = model(16.0, 1e12);
  write_results(value);
  const std::string html = page();
  EXPECT_TRUE(has(html, "12.5 % above the dense model"));
  EXPECT_TRUE(has(html, "Above dense"));
}

TEST_F(ReportTest, LoadsNothingFromAnywhere) {
  write_complete_run();
  const std::string html = page();
  for (const char* part :
       {"http:", "https:", "//cdn", "<link", "<img", "@import", "url(", "src="}) {
    EXPECT_FALSE(has(html, part)) << part;
  }
}

TEST_F(ReportTest, EmptyFolderGivesAPageThatNamesWhatIsMissing) {
  const std::string html = page();
  EXPECT_TRUE(has(html, "This run has no results yet."));
  for (const char* file : {"results.json", "routing.jsonl", "metrics.jsonl", "experiment.toml"}) {
    EXPECT_TRUE(has(html, file)) << file;
  }
}

TEST_F(ReportTest, NamesAModelWithoutCurve) {
  write_complete_run();
  std::filesystem::remove_all(run_ / "baselines/dense");
  EXPECT_TRUE(has(page(), "No loss curve yet of: Dense."));
}

TEST_F(ReportTest, WithoutBaselinesItMakesNoComparison) {
  json value = results();
  value["models"] = {{"mixture", model(18.0, 1e12)}};
  write_results(value);
  EXPECT_TRUE(has(page(), "no dense model was trained to compare it with"));
}

TEST_F(ReportTest, EscapesWhatComesFromFiles) {
  const std::string evil = "\"><script>alert('x')</script>&";
  json value = results();
  value["name"] = evil;
  value["models"][evil] = model(21.0, 1e12);
  value["models"]["mixture"]["perplexity_per_domain"][evil] = 20.0;
  value["routing"]["domains"][1] = evil;
  value["communication"]["phases"][0]["call"] = evil;
  value["seconds"][evil] = 1.0;
  write_complete_run();
  write_results(value);
  json rules = comparison();
  rules["reference"] = rules["rows"][1]["rule"] = rules["rows"][2]["verdict"] = evil;
  write("comparison-test.json", rules.dump());
  write("experiment.toml", "name = '" + evil + "'\n");
  const std::string html = page();
  EXPECT_FALSE(has(html, "<script>alert"));
  EXPECT_TRUE(has(html, "&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;"));
}

TEST_F(ReportTest, SurvivesBrokenFiles) {
  write_complete_run();
  write("results.json", "{\"schema\":1,");
  write("experts/0/metrics.jsonl",
        "{\"step\":1,\"tokens\":10,\"loss_metrics/global_avg_loss\":null}\n"
        "{\"step\":2,\"tok");
  EXPECT_TRUE(has(page(), "results.json cannot be read"));
}

TEST_F(ReportTest, SurvivesDeepNestingAndHugeNumbers) {
  write_complete_run();
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  write("results.json", deep);
  write("routing.jsonl", "{\"round\":0,\"x\":" + deep + "}\n{\"round\":1e300}\n");
  EXPECT_TRUE(has(page(), "results.json cannot be read"));
  json value = results();
  value["models"]["mixture"]["perplexity"]["all"] = 1e308;
  value["models"]["dense"]["perplexity"]["all"] = -1e308;
  write_results(value);
  page();
}

TEST_F(ReportTest, SurvivesFiguresOfAnotherKind) {
  json value = results();
  value["models"]["mixture"]["perplexity"]["after_prefix"] = nullptr;
  value["models"]["dense"]["lr"] = "high";
  value["models"]["other"] = 3;
  value["per_expert"][0] = "none";
  value["routing"]["expert_by_domain"] = {{1, 2}, {3}};
  value["communication"]["phases"] = "none";
  value["seconds"] = json::array();
  write_results(value);
  json rules = comparison();
  rules["rows"][0] = 7;
  rules["rows"][1]["prefix_tokens"] = "four";
  rules["rows"][2]["difference_95_percent"] = {1};
  rules["rows"][3]["perplexity"] = nullptr;
  rules["rows"][4]["difference_95_percent"] = {"low", "high"};
  write("comparison-test.json", rules.dump());
  EXPECT_TRUE(has(page(), "10.0 % below the dense model"));
}

TEST_F(ReportTest, ShowsHowLoryWeighsItsExperts) {
  EXPECT_FALSE(has(page(), "id=\"lory\""));
  for (const int experts : {2, 3, 32}) {
    json value = results();
    value["models"]["lory"] = model(19.0, 1e12);
    value["models"]["lory"]["routing"] = lory_routing_of(experts);
    write_results(value);
    const std::string html = page();
    EXPECT_TRUE(has(html, "<a href=\"#lory\">Lory</a>"));
    EXPECT_TRUE(has(html, "over 1,234 segments"));
    EXPECT_EQ(has(html, "class=\"maps wide\""), experts > 10);
    // Of two none can be active.
    const std::string active = experts == 2 ? "–" : "12.5 %";
    const std::string ever = experts == 2 ? "–" : "2 of " + std::to_string(experts);
    EXPECT_TRUE(has(html, "<th scope=\"row\">3</th><td class=\"num\">" + active +
                              "</td><td class=\"num\">" + ever +
                              "</td><td class=\"num\">0.5</td><td class=\"num\">75.0 %</td>"
                              "<td class=\"num\">80.0 %</td>"))
        << html;
    for (const char* map : {"<h3>Layer 0: mean weights</h3>", "<h3>Layer 3: mean weights</h3>"}) {
      EXPECT_TRUE(has(html, map));
    }
    EXPECT_TRUE(has(html, "title=\"code, expert 1: "));
    EXPECT_TRUE(has(html, "weigh all experts all but alike in these layers: 0 "));
    EXPECT_TRUE(has(html, "weigh more than 2 / E in no segment of any layer: 1."));
  }
  // The largest weight of all maps is the darkest; small ones have a decimal.
  const std::string html = page();
  EXPECT_TRUE(has(html,
                  "<td class=\"full\" style=\"--share:1.000\" title=\"prose, expert 0: "
                  "50.0 %\">50</td><td style=\"--share:0.032\" title=\"prose, expert 1: "
                  "1.6 %\">1.6</td>"))
      << html;
  json value = results();
  value["models"]["lory"] = model(19.0, 1e12);
  write_results(value);
  EXPECT_TRUE(has(page(), "results.json has no routing of Lory"));
  for (const json& odd : {json(3), json{{"experts", 1e300}, {"layers", {7}}},
                          json{{"experts", 2},
                               {"layers", {{{"layer", "<b>"}}}},
                               {"domains", {"<i>", 2}},
                               {"by_domain", {{{"weights", {{1, 2}, {"x", nullptr}}}}, 5}},
                               {"dead_experts", "all"}}}) {
    value["models"]["lory"]["routing"] = odd;
    write_results(value);
    EXPECT_FALSE(has(page(), "<b></td>")) << odd;
  }
}

TEST_F(ReportTest, ShowsTasksModelByModel) {
  write_complete_run();
  EXPECT_FALSE(has(page(), "id=\"tasks\""));
  write("tasks.json", tasks().dump());
  std::string html = page();
  EXPECT_TRUE(
      has(html,
          "<th scope=\"row\">copa</th><td class=\"num\">20</td><td class=\"num\">5</td><td>acc</td>"
          "<td class=\"num\">0.6250&nbsp;± 0.0312</td>"
          "<td class=\"num\">0.5000&nbsp;± 0.0312</td>"));
  EXPECT_TRUE(has(html, "<td>acc_norm</td><td class=\"num\">0.6350</td>"));
  EXPECT_TRUE(has(html,
                  "<td class=\"num\">–</td><td>perplexity</td>"
                  "<td class=\"num\">62.50&nbsp;± 1,234</td>"));
  EXPECT_TRUE(has(html, "<tr><th scope=\"row\">pairs</th>"));
  EXPECT_TRUE(has(html, "<tr class=\"part\"><th scope=\"row\">pairs_a</th>"));
  EXPECT_TRUE(has(html, "width:75.0%\" title=\"expert 0: 75.0 %\""));

  json odd = tasks();
  odd["models"]["<b>"] = odd["models"]["dense"];
  odd["models"]["dense"]["results"] = 7;
  odd["models"]["mixture"]["results"]["<i>/x"] = odd["models"]["mixture"]["results"]["copa"];
  odd["models"]["mixture"]["expert_shares"] = {{"copa", {"most", -1}}};
  write("tasks.json", odd.dump());
  html = page();
  EXPECT_TRUE(has(html, "&lt;b&gt;"));
  EXPECT_TRUE(has(html, "&lt;i&gt;/x"));
  write("tasks.json", "{");
  EXPECT_TRUE(has(page(), "tasks.json cannot be read"));
}

// A run whose test text can be read: each document one sequence, which tries to break the page.
class ReportExamplesTest : public ReportTest {
 protected:
  static constexpr int64_t kSequences = 9;
  static constexpr int64_t kLength = 200;

  void SetUp() override {
    std::string all;
    for (int64_t i = 0; i < kSequences; ++i) all += text_of(i) + "\n";
    write("text.txt", all);
    train_tokenizer({(run_ / "text.txt").string()}, 300, 1'000'000,
                    run_ / "tokens/tokenizer.model");
    const Tokenizer tokenizer(run_ / "tokens/tokenizer.model");
    TokenFileInfo info;
    info.num_tokens = kSequences * kLength + 1;
    info.num_documents = kSequences + 1;
    info.vocab_size = tokenizer.vocab_size();
    info.tokenizer_hash = tokenizer.hash();
    const auto file = run_ / "tokens/test.h5";
    TokenWriter writer(file, file, info, {"unknown", "<domain>"});
    for (int64_t i = 0; i <= kSequences; ++i) {
      const auto ids = tokenizer.encode(text_of(i));
      ASSERT_GE(std::ssize(ids), kLength);
      const size_t length = i < kSequences ? kLength : 1;
      std::vector<uint32_t> tokens(ids.begin(), ids.begin() + static_cast<int64_t>(length) - 1);
      tokens.push_back(kEndToken);
      writer.add_tokens(tokens);
      const auto end = static_cast<uint64_t>(std::min(i * kLength + kLength, info.num_tokens));
      const uint16_t domain = i % 2 == 0 ? 0 : 1;
      writer.add_documents({&end, 1}, {&domain, 1});
    }
    writer.finish();
    write_complete_run();
    json value = results();
    value["seq_length"] = kLength;
    value["prefix_tokens"] = kLength;
    write_results(value);
    write_router_scores(TokenFile(file).info().content_hash);
  }
  // Of two bytes a letter behind a beginning that is longer from text to text.
  static std::string text_of(int64_t i) {
    std::string text = "<script>alert('x')</script>\x01" + std::string(static_cast<size_t>(i), 'a');
    for (int k = 0; k < 5000; ++k) text += k % 2 == 0 ? "é" : "ü";
    return text;
  }
  // The last goes to expert 1, the others to expert 0, the earlier the clearer; a tie among them.
  void write_router_scores(const std::string& tokens) const {
    ScoreMatrix scores(kSequences, 2);
    for (int64_t i = 0; i + 1 < kSequences; ++i) {
      scores.row(i)[0] = static_cast<float>(kSequences - 2 - i);
    }
    scores.row(kSequences - 1)[1] = 3;
    std::filesystem::create_directories(run_ / "evaluation/test");
    std::filesystem::remove(run_ / "evaluation/test/routers.h5");
    write_scores(run_ / "evaluation/test/routers.h5", scores, {{"tokens", tokens}});
  }
};

TEST_F(ReportExamplesTest, ShowsWhatARouterLikesAndTheCloseCalls) {
  const std::string html = page();
  EXPECT_TRUE(has(html, "<b>Expert 0</b>, 8 of 9 test sequences"));
  EXPECT_TRUE(has(html, "<b>Expert 1</b>, 1 of 9 test sequences"));
  size_t at = 0;
  for (const char* expected :
       {"<b>Clearest</b> · 7.00&nbsp;nats before <span class=\"key e1\"></span>1 · sequence 0<",
        "<b>Clearest</b> · &lt;domain&gt; · 6.00&nbsp;nats before ", "· sequence 2<",
        "<b>Middle</b> · 3.00&nbsp;", "<b>Closest</b> · 1.00&nbsp;",
        "<b>Closest</b> · &lt;domain&gt; · 0&nbsp;", "<b>Expert 1</b>",
        "<b>Clearest</b> · 3.00&nbsp;"}) {
    at = html.find(expected, at);
    ASSERT_NE(at, std::string::npos) << expected;
  }
  EXPECT_FALSE(has(html, "<script>alert"));
  EXPECT_TRUE(has(html, "<q>&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; é"));
  EXPECT_FALSE(has(html, "\x01"));
  EXPECT_FALSE(has(html, "class=\"missing\""));  // anywhere: all files of a run are there
  // Shortened, never inside of a letter.
  EXPECT_TRUE(has(html, "é…</q>") || has(html, "ü…</q>"));
  EXPECT_FALSE(has(html, "\xc3…"));
}

TEST_F(ReportExamplesTest, ShowsNoTextThatTheScoresAreNotOf) {
  write_router_scores("of another file");
  EXPECT_TRUE(has(page(), "scores are not of the text in test.h5"));
  write("evaluation/test/routers.h5", "no HDF5");
  EXPECT_TRUE(has(page(), "routers.h5"));
  std::filesystem::remove(run_ / "evaluation/test/routers.h5");
  EXPECT_TRUE(has(page(), "scores in evaluation/test are missing"));
}

TEST_F(ReportTest, SweepShowsEachRowBesideItsReference) {
  json value = sweep();
  value["tables"][0]["rows"][2]["label"] = "**the other**";
  value["tables"][0]["rows"][2]["step"] = 1500;
  write("sweep.json", value.dump());
  write("seconds.json", R"({"base": {"dense": 90, "mixture": 30}, "other": {"mixture": 7}})");
  write("runs/base-seed-1/report.html", "");
  write_report(run_.path());
  const std::string html = read_text(run_ / "report.html");
  EXPECT_EQ(unbalanced(html), "");
  EXPECT_TRUE(has(html, "<h1>4 runs, 1 table</h1>"));
  EXPECT_TRUE(has(html, "Which is best?"));
  EXPECT_TRUE(has(html, "640 news sequences of 37 documents, means over 2 seeds"));
  EXPECT_TRUE(has(html, "<b>30.00</b><small>29.00 to 31.00</small>"));
  EXPECT_TRUE(has(html, "-10.00&nbsp;(-10.90&nbsp;to&nbsp;-9.10)&nbsp;%"));
  // The range is [log(0.9) - 0.02, log(1.1) + 0.02]; places are of 92 % behind a margin of 4 %.
  EXPECT_TRUE(has(html, "class=\"interval better\""));
  EXPECT_TRUE(has(html, "class=\"zero\" x1=\"51.9%\""));
  EXPECT_TRUE(has(html, "cx=\"11.6%\" cy=\"50%\" r=\"4.5\""));
  EXPECT_TRUE(has(html, "class=\"interval worse\""));
  EXPECT_TRUE(has(html, "</span>base: Mixture<small>routers, 16 tokens</small>"));
  EXPECT_TRUE(has(html, "</span>the other<small>routers, 16 tokens, step 1,500</small>"));
  EXPECT_TRUE(has(html, "Differences are from base: dense;"));
  EXPECT_TRUE(has(html, "1 min 30 s"));
  EXPECT_FALSE(has(html, "7.0 s"));  // a checkpoint has no time of its own
  EXPECT_TRUE(has(html, "<a href=\"runs/base-seed-1/report.html\">1</a> 2 "));
  EXPECT_FALSE(has(html, "href=\"runs/other"));

  write("experiment.toml", "");  // a run, whatever else lies there
  write_report(run_.path());
  EXPECT_FALSE(has(read_text(run_ / "report.html"), "Which is best?"));
}

TEST_F(ReportTest, SweepSurvivesOddAndHostileFiles) {
  const auto page_of = [&](const std::string& text) {
    write("sweep.json", text);
    std::string html = render_sweep(run_.path());
    EXPECT_EQ(unbalanced(html), "") << text;
    return html;
  };
  EXPECT_TRUE(has(page_of("{"), "sweep.json cannot be read"));
  EXPECT_TRUE(has(page_of("{\"tables\": 3}"), "sweep.json has no tables"));
  EXPECT_TRUE(has(page_of("{\"tables\": [7, {\"rows\": 1, \"seeds\": {\"a\": []}}]}"),
                  "This table has no rows."));
  const std::string evil = "\"><script>alert('x')</script>&";
  json value = sweep();
  for (const char* key : {"name", "title"}) value["tables"][0][key] = evil;
  value["tables"][0]["data"] = evil;
  for (const char* key : {"run", "model", "rule", "verdict", "compared_with", "step"}) {
    value["tables"][0]["rows"][1][key] = evil;
  }
  value["tables"][0]["rows"][2]["label"] = evil;
  value["tables"][0]["seeds"][1] = evil;
  value["tables"][0]["rows"][2]["perplexity_by_seed"] = "none";
  EXPECT_FALSE(has(page_of(value.dump()), "<script>alert"));
}

TEST_F(ReportTest, WritesBesideTheRunOrWhereItIsTold) {
  write_complete_run();
  EXPECT_EQ(write_report(run_.path()), run_ / "report.html");
  EXPECT_EQ(write_report(run_.path(), run_ / "pages/one.html"), run_ / "pages/one.html");
  EXPECT_EQ(read_text(run_ / "report.html"), read_text(run_ / "pages/one.html"));
}

TEST_F(ReportTest, RefusesWhatIsNoFolder) { EXPECT_THROW(render_report(run_ / "nowhere"), Error); }

}  // namespace
}  // namespace smalltalk
