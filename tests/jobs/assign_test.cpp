// The job `assign` as its users run it: alone and under mpirun, right and wrong.
#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "assign_fixture.hpp"
#include "data/hdf5_file.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::HasSubstr;

// The definition, walked: in order of the best score or the margin, each to its best expert with
// room. Rows before `first` have their place already.
Assignment walk(const ScoreMatrix& scores, std::vector<int64_t> room, bool by_margin,
                int64_t first = 0) {
  std::vector<float> keys;
  for (int64_t i = 0; i < scores.num_sequences(); ++i) {
    std::vector<float> sorted(scores.row(i).begin(), scores.row(i).end());
    std::sort(sorted.rbegin(), sorted.rend());
    sorted.push_back(sorted[0]);
    keys.push_back(by_margin ? sorted[0] - sorted[1] : sorted[0]);
  }
  std::vector<int64_t> order(static_cast<size_t>(scores.num_sequences() - first));
  std::iota(order.begin(), order.end(), first);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return keys[static_cast<size_t>(a)] > keys[static_cast<size_t>(b)];
  });
  Assignment assignment(order.size());
  for (const int64_t i : order) {
    const auto row = scores.row(i);
    size_t best = room.size();
    for (size_t e = 0; e < room.size(); ++e) {
      if (room[e] > 0 && (best == room.size() || row[e] > row[best])) best = e;
    }
    --room[best];
    assignment[static_cast<size_t>(i - first)] = static_cast<uint16_t>(best);
  }
  return assignment;
}

std::vector<int64_t> counts_of(std::span<const uint16_t> assignment, size_t experts) {
  std::vector<int64_t> counts(experts);
  for (const uint16_t e : assignment) ++counts[e];
  return counts;
}

// The one line of JSON on stdout.
Json figures_of(const Outcome& outcome) {
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "\n{") + (outcome.output.starts_with("{") ? 1 : 0), 1)
      << outcome.output;
  const size_t start = outcome.output.find("{\"");
  return Json::parse(outcome.output.substr(start, outcome.output.find('\n', start) - start));
}

class Assign : public AssignTest {
 protected:
  std::map<std::string, std::string> contents() const {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path())) {
      found[entry.path().string()] = entry.is_regular_file() ? read_text(entry.path()) : "";
    }
    return found;
  }
  // One error, of all of `parts`; and nothing in the folder changes.
  void expect_refused(int ranks, const std::string& arguments,
                      const std::vector<std::string>& parts) const {
    const auto before = contents();
    const Outcome outcome = ranks == 0 ? run_alone(arguments) : run_job(ranks, arguments);
    EXPECT_EQ(outcome.exit_code, 1) << arguments << "\n" << outcome.output;
    EXPECT_EQ(count_of(outcome.output, "error: "), 1) << outcome.output;
    for (const std::string& part : parts) EXPECT_THAT(outcome.output, HasSubstr(part));
    EXPECT_EQ(contents(), before) << arguments;
  }
};

TEST_F(Assign, IsTheSameForAnyRanksAndThreads) {
  const ScoreMatrix scores = write_random_scores("s.h5", 1003, 5);
  const ScoreFile file(path("s.h5"));
  const std::map<std::string, std::vector<int>> ranks_of = {// 0: without mpirun
                                                            {"greedy", {0, 1, 2, 3, 4}},
                                                            {"margin", {0, 3}},
                                                            {"optimal", {0, 4}}};
  for (const auto& [method, all_ranks] : ranks_of) {
    std::string bytes;
    for (const int ranks : all_ranks) {
      const std::string out = method + std::to_string(ranks) + ".h5";
      const std::string arguments =
          files("s.h5", out) + "--method " + method + " --threads " + std::to_string(1 + ranks % 2);
      const Outcome outcome = ranks == 0 ? run_alone(arguments) : run_job(ranks, arguments);
      ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
      if (ranks == 0) bytes = read_text(path(out));
      EXPECT_TRUE(read_text(path(out)) == bytes) << method << " on " << ranks << " ranks";
    }
    const Shards shards = read_shards(path(method + "0.h5"));
    EXPECT_EQ(counts_of(shards.expert, 5), balanced_capacities(1003, 5));
    if (method == "optimal") continue;
    EXPECT_EQ(shards.expert, walk(scores, balanced_capacities(1003, 5), method == "margin"));
    const AssignmentRule rule = read_shard_info(path(method + "0.h5")).rule;
    EXPECT_EQ(rule.closings.size(), 4u);
    EXPECT_EQ(apply_rule(file.rows(0, 1003), rule).expert, shards.expert);
  }
}

TEST_F(Assign, TellsItsFigures) {
  write_random_scores("s.h5", 2000, 6);
  const Json greedy = figures_of(run_job(2, files("s.h5", "greedy.h5") + "--json --threads 1"));
  const Json optimal =
      figures_of(run_alone(files("s.h5", "optimal.h5") + "--json --method optimal"));
  for (const auto& [figures, method] : {std::pair{greedy, "greedy"}, {optimal, "optimal"}}) {
    EXPECT_EQ(figures.at("method"), method);
    EXPECT_EQ(figures.at("sequences"), 2000);
    EXPECT_EQ(figures.at("kept_sequences"), 0);
    EXPECT_EQ(figures.at("experts"), 6);
    EXPECT_GT(figures.at("displaced"), 0);
    EXPECT_NEAR(
        figures.at("mean_regret"),
        figures.at("mean_score").get<double>() - figures.at("mean_best_score").get<double>(),
        1e-12);
    EXPECT_EQ(figures.at("assigned_counts"), Json(balanced_capacities(2000, 6)));
    for (const char* stage : {"read", "assign", "write"}) {
      EXPECT_GE(figures.at("seconds").at(stage), 0);
    }
    EXPECT_GE(figures.at("threads_per_rank"), 1);
    EXPECT_GT(figures.at("peak_memory_bytes_per_rank"), 1 << 20);
  }
  EXPECT_EQ(greedy.at("ranks"), 2);
  EXPECT_EQ(optimal.at("ranks"), 1);
  EXPECT_FALSE(optimal.contains("selection"));
  EXPECT_EQ(greedy.at("selection").at("predictions").size(), 5u);
  constexpr double kEpsilon = 1e-3;
  EXPECT_LE(greedy.at("mean_regret"), optimal.at("mean_regret").get<double>() + kEpsilon);
  EXPECT_LE(optimal.at("mean_regret"), optimal.at("mean_regret_bound"));
  EXPECT_GE(optimal.at("mean_regret"), optimal.at("mean_regret_bound").get<double>() - kEpsilon);
  EXPECT_LE(greedy.at("mean_regret"), greedy.at("mean_regret_bound"));
  EXPECT_LE(optimal.at("mean_regret"), greedy.at("mean_regret_bound"));
}

TEST_F(Assign, MovesNoMoreBytesForMoreSequences) {
  // Both have keys of 33 bits: 23 + 10, and 18 + 15.
  write_scores(path("few.h5"), random_scores(1'000, 8, -1.9999, -1, 1 << 30), {});
  write_scores(path("many.h5"), random_scores(20'000, 8, -1.03124, -1, 1 << 30), {});
  std::map<std::string, double> sent;
  for (const std::string name : {"few", "many"}) {
    const Json figures = figures_of(run_job(
        4, files(name + ".h5", name + "-shards.h5") + "--json --threads 1 --no-certificate"));
    EXPECT_FALSE(figures.contains("mean_regret_bound"));
    const Json& selection = figures.at("selection");
    EXPECT_EQ(selection.at("key_bits"), 33);
    EXPECT_NEAR(selection.at("predicted_numbers"), 33 * 8 * 8 / 2, 1e-9);
    sent[name] = figures.at("bytes_sent_per_rank");
    // Beside the selections there are a few sums for the statistics.
    EXPECT_GE(sent[name], 8 * selection.at("numbers").get<double>());
    EXPECT_LE(sent[name], 1.5 * 8 * selection.at("predicted_numbers").get<double>());
    RecordProperty(name + "_bytes", std::to_string(sent[name]));
  }
  EXPECT_LT(sent["many"], 1.5 * sent["few"]);
}

TEST_F(Assign, Compares) {
  write_random_scores("s.h5", 1500, 5);
  const auto before = contents();
  const std::string arguments = "assign --compare --scores " + path("s.h5");
  const Json json = figures_of(run_job(2, arguments + " --json"));
  EXPECT_EQ(json.at("sequences"), 1500);
  EXPECT_EQ(json.at("experts"), 5);
  std::map<std::string, double> mean;
  for (const auto& [name, figures] : json.at("methods").items()) {
    mean[name] = figures.at("mean_score");
    EXPECT_LE(figures.at("mean_regret"), 0);
    if (name != "argmax (not balanced)") {
      EXPECT_LE(figures.at("mean_regret"), json.at("mean_regret_bound")) << name;
      EXPECT_EQ(figures.at("assigned_counts"), Json(balanced_capacities(1500, 5))) << name;
    }
  }
  ASSERT_EQ(mean.size(), 6u) << json.dump(1);
  EXPECT_EQ(json.at("methods").at("greedy").at("differs_from_greedy"), 0);
  EXPECT_GT(json.at("methods").at("random").at("differs_from_greedy"), 0);
  EXPECT_EQ(json.at("methods").at("argmax (not balanced)").at("displaced"), 0);
  for (const auto& [name, value] : mean) {
    EXPECT_LE(value, mean.at("argmax (not balanced)")) << name;
    if (name != "argmax (not balanced)") {
      EXPECT_LE(value, mean.at("optimal") + 1e-3) << name;
    }
    EXPECT_GE(value, mean.at("random")) << name;  // not guaranteed, but for 1,500 sequences sure
  }
  const Outcome table = run_alone(arguments);
  for (const auto& [name, value] : mean) EXPECT_THAT(table.output, HasSubstr("\n" + name + " "));
  EXPECT_EQ(contents(), before);
}

TEST_F(Assign, OverwritesNothing) {
  write_random_scores("s.h5", 200, 3);
  const std::string arguments = files("s.h5", "out.h5");
  ASSERT_EQ(run_alone(arguments).exit_code, 0);
  const auto time = fs::last_write_time(path("out.h5"));
  for (const int ranks : {0, 2}) {
    const Outcome again = ranks == 0 ? run_alone(arguments) : run_job(ranks, arguments);
    EXPECT_EQ(again.exit_code, 0);
    EXPECT_EQ(count_of(again.output, "out.h5 is complete"), 1) << again.output;
  }
  expect_refused(2, arguments + "--method margin", {path("out.h5"), "never overwritten"});
  expect_refused(0, arguments + "--shares 1,2,1", {path("out.h5"), "never overwritten"});
  EXPECT_EQ(fs::last_write_time(path("out.h5")), time);
  // A file that is no shard file is not overwritten either.
  expect_refused(0, files("s.h5", "s.h5"), {path("s.h5")});
}

TEST_F(Assign, Appends) {
  const ScoreMatrix all = write_random_scores("new.h5", 1000, 4);
  ScoreMatrix first(600, 4);
  std::copy_n(all.values().begin(), first.values().size(), first.values().begin());
  write_scores(path("old.h5"), first, {});
  ASSERT_EQ(run_alone(files("old.h5", "base.h5") + "--shares 1,2,1,2").exit_code, 0);
  const Shards base = read_shards(path("base.h5"));
  EXPECT_EQ(counts_of(base.expert, 4), (std::vector<int64_t>{100, 200, 100, 200}));
  EXPECT_EQ(base.expert, walk(first, {100, 200, 100, 200}, false));

  const std::string append = " --append " + path("base.h5");
  ASSERT_EQ(run_job(3, files("new.h5", "three.h5") + append).exit_code, 0);
  ASSERT_EQ(run_alone(files("new.h5", "one.h5") + append).exit_code, 0);
  EXPECT_TRUE(read_text(path("three.h5")) == read_text(path("one.h5")));
  const Shards shards = read_shards(path("three.h5"));
  EXPECT_EQ(shards.kept_sequences, 600);
  EXPECT_EQ(counts_of(shards.expert, 4), balanced_capacities(1000, 4));
  Assignment expected = base.expert;
  const Assignment appended = walk(all, {150, 50, 150, 50}, false, 600);
  expected.insert(expected.end(), appended.begin(), appended.end());
  EXPECT_EQ(shards.expert, expected);

  expect_refused(2, files("new.h5", "out.h5") + append + " --shares 10,1,10,10",
                 {"expert 1 keeps 200 sequences", "larger share"});
  expect_refused(0, files("old.h5", "out.h5") + " --append " + path("one.h5"),
                 {path("one.h5"), "1000 sequences of 4", path("old.h5"), "600 of 4"});
  write_random_scores("five.h5", 1000, 5);
  expect_refused(0, files("five.h5", "out.h5") + append, {path("base.h5"), "600 sequences of 4"});
}

// Sequences choose in the order 2, 0, 3, 1; expert 0 is full after 2 and 0.
TEST_F(Assign, IsExplained) {
  ScoreMatrix scores(4, 2);
  const std::vector<float> values = {-2, -5, -4, -9, -1, -7, -3, -8};
  std::copy(values.begin(), values.end(), scores.values().begin());
  write_scores(path("s.h5"), scores, {});
  ASSERT_EQ(run_alone(files("s.h5", "o.h5")).exit_code, 0);
  const auto explain = [&](int64_t sequence, const std::string& s = "s.h5",
                           const std::string& o = "o.h5") {
    return run_alone("explain --json --scores " + path(s) + " --shards " + path(o) +
                     " --sequence " + std::to_string(sequence));
  };
  const Json displaced = figures_of(explain(1));
  EXPECT_EQ(displaced.at("expert"), 1);
  EXPECT_EQ(displaced.at("best_expert"), 0);
  EXPECT_EQ(displaced.at("margin"), 5);
  EXPECT_EQ(displaced.at("cost"), 5);
  EXPECT_EQ(displaced.at("displaced"), true);
  EXPECT_EQ(displaced.at("kept"), false);
  const Json& full = displaced.at("experts").at(0);
  EXPECT_EQ(full.at("expert"), 0);
  EXPECT_EQ(full.at("capacity"), 2);
  EXPECT_EQ(full.at("full_after_sequence"), 0);
  EXPECT_EQ(full.at("its_best_score"), -2);

  const Json at_best = figures_of(explain(2));
  EXPECT_EQ(at_best.at("expert"), 0);
  EXPECT_EQ(at_best.at("displaced"), false);
  EXPECT_EQ(at_best.at("cost"), 0);

  // The same beside two new ones: it was not asked again.
  ScoreMatrix more(6, 2);
  std::fill(more.values().begin(), more.values().end(), -3.0F);
  std::copy(values.begin(), values.end(), more.values().begin());
  write_scores(path("more.h5"), more, {});
  ASSERT_EQ(run_alone(files("more.h5", "p.h5") + " --append " + path("o.h5")).exit_code, 0);
  const Json kept = figures_of(explain(1, "more.h5", "p.h5"));
  EXPECT_EQ(kept.at("kept"), true);
  EXPECT_EQ(kept.at("expert"), 1);
  EXPECT_FALSE(kept.at("experts").at(0).contains("full_after_sequence"));
  EXPECT_EQ(figures_of(explain(5, "more.h5", "p.h5")).at("kept"), false);

  const Outcome unknown = explain(4);
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.output, HasSubstr("no sequence 4 in"));
}

TEST_F(Assign, RefusesBadInput) {
  expect_refused(3, files("absent.h5", "out.h5"), {"absent.h5"});
  std::ofstream(folder_ / "text.h5") << "not HDF5\n";
  expect_refused(0, files("text.h5", "out.h5"), {"text.h5", "HDF5"});

  const std::vector<double> values(12, -1.0);
  const auto write = [&](const std::string& name, const auto& fill) {
    Hdf5File file = Hdf5File::create(path(name), path(name));
    fill(file);
    file.close();
  };
  write("double.h5", [&](Hdf5File& file) { file.write<double>("scores", values, {4, 3}); });
  write("flat.h5", [&](Hdf5File& file) {
    file.write<float>("scores", std::vector<float>(values.begin(), values.end()));
  });
  expect_refused(0, files("double.h5", "out.h5"), {"double.h5", "float32"});
  expect_refused(0, files("flat.h5", "out.h5"), {"flat.h5", "two-dimensional"});

  ScoreMatrix scores = write_random_scores("s.h5", 300, 3);
  scores.row(211)[2] = std::numeric_limits<float>::quiet_NaN();  // only one rank sees it
  write_scores(path("nan.h5"), scores, {});
  const std::vector<std::string> place = {"sequence 211 under expert 2 is nan"};
  expect_refused(3, files("nan.h5", "out.h5"), place);
  expect_refused(2, files("nan.h5", "out.h5") + "--method optimal", place);
  expect_refused(0, "assign --compare --scores " + path("nan.h5"), place);

  expect_refused(0, files("s.h5", "out.h5") + "--shares 1,2", {"2 shares", "3 experts"});
  expect_refused(0, files("s.h5", "out.h5") + "--shares 1,0,2", {"must be positive"});
  expect_refused(3, files("s.h5", "text.h5/out.h5"), {"text.h5"});
  expect_refused(0, "assign --scores " + path("s.h5") + " --out /proc/smalltalk/out.h5", {"/proc"});
}

TEST_F(Assign, RefusesBadUsage) {
  write_random_scores("s.h5", 10, 3);
  const auto before = contents();
  for (const std::string& wrong :
       {files("s.h5", "out.h5") + "--method best", files("s.h5", "out.h5") + "--compare",
        "assign --scores " + path("s.h5"), "assign --out " + path("out.h5")}) {
    const Outcome outcome = run_alone(wrong);
    EXPECT_EQ(outcome.exit_code, 2) << wrong << "\n" << outcome.output;
    EXPECT_GT(outcome.output.size(), 20u);
  }
  const Outcome outcome = run_job(2, files("s.h5", "out.h5") + "--method best");
  EXPECT_EQ(outcome.exit_code, 2) << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "optimal"), 1) << outcome.output;
  EXPECT_EQ(contents(), before);
}

TEST_F(Assign, WorksOnTheSmallestAndOnForeignFiles) {
  write_random_scores("few.h5", 3, 5);
  write_random_scores("one.h5", 7, 1);
  write_random_scores("wide.h5", 20, 5000);  // too many experts for a certificate
  const ScoreMatrix scores = random_scores(50, 3);
  Hdf5File foreign = Hdf5File::create(path("foreign.h5"), path("foreign.h5"));
  foreign.write<float>("scores", scores.values(), {50, 3});
  foreign.close();
  struct Case {
    std::string name, method;
    int ranks;
  };
  for (const Case& c :
       {Case{"few", "greedy", 4}, Case{"few", "margin", 0}, Case{"few", "optimal", 2},
        Case{"one", "greedy", 2}, Case{"one", "optimal", 0}, Case{"foreign", "margin", 2},
        Case{"wide", "greedy", 0}}) {
    const std::string out = c.name + "-" + c.method + ".h5";
    const std::string arguments = files(c.name + ".h5", out) + "--method " + c.method;
    const Outcome outcome = c.ranks == 0 ? run_alone(arguments) : run_job(c.ranks, arguments);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
    const ScoreMatrix in = read_scores(path(c.name + ".h5"));
    const auto capacities = balanced_capacities(in.num_sequences(), in.num_experts());
    const Shards shards = read_shards(path(out));
    EXPECT_EQ(counts_of(shards.expert, capacities.size()), capacities) << out;
    if (c.method == "optimal") continue;
    EXPECT_EQ(shards.expert, walk(in, capacities, c.method == "margin")) << out;
  }
}

}  // namespace
}  // namespace smalltalk
