#include "smalltalk/core/experiment/sweep.hpp"

#include <gtest/gtest.h>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class SweepFile : public ::testing::Test {
 protected:
  Sweep load(const std::string& text) const {
    write_text_atomically(path_, text);
    return load_sweep(path_);
  }
  std::string complaint(const std::string& text) const {
    return complaint_of([&] { load(text); });
  }
  const TemporaryFolder folder_;
  const fs::path path_ = folder_ / "sweep.toml";
  const std::string good_ = R"(
experiment = "a.toml"
set = "seed=3"
seeds = [1, 2, 3]
[[run]]
name = "a"
[[run]]
name = "b"
set = ["mixture.experts=8", "expert.lr=1e-2"]
seeds = [4, 3, 2]
[[data]]
name = "news"
files = "news.jsonl"
[[table]]
name = "t"
title = "A question?"
rows = [{ run = ["a", "b"], model = "mixture", prefix = [16, 8] }, { run = "b", label = "B" }]
reference = { run = "a", model = "dense", prefix = 32 }
[[table]]
name = "u"
data = "news"
rows = [{ run = "b", step = [20, 10] }]
reference = { run = "b", model = "dense" }
)";
  std::string with(const std::string& old, const std::string& text) const {
    std::string changed = good_;
    return changed.replace(changed.find(old), old.size(), text);
  }
};

TEST_F(SweepFile, IsReadAsItSays) {
  const Sweep sweep = load(good_);
  EXPECT_EQ(sweep.experiment, "a.toml");
  ASSERT_EQ(sweep.runs.size(), 2U);
  EXPECT_EQ(sweep.runs[0].overrides, (std::vector<std::string>{"seed=3"}));
  EXPECT_EQ(sweep.runs[0].seeds, (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(sweep.runs[1].overrides,
            (std::vector<std::string>{"seed=3", "mixture.experts=8", "expert.lr=1e-2"}));
  EXPECT_EQ(sweep.runs[1].seeds, (std::vector<uint64_t>{4, 3, 2}));
  ASSERT_EQ(sweep.tables.size(), 2U);
  const SweepTable& table = sweep.tables[0];
  EXPECT_EQ(table.title, "A question?");
  EXPECT_EQ(table.seeds, (std::vector<uint64_t>{2, 3}));  // those of both runs
  ASSERT_EQ(table.rows.size(), 2U);
  EXPECT_EQ(table.rows[0].runs, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(table.rows[0].models, (std::vector<std::string>{"mixture"}));
  EXPECT_TRUE(table.rows[0].rules.empty());
  EXPECT_EQ(table.rows[1].label, "B");
  EXPECT_EQ(table.reference.models, (std::vector<std::string>{"dense"}));
  EXPECT_EQ(table.data, "test");
  EXPECT_EQ(sweep.tables[1].data, "news");
  ASSERT_EQ(sweep.data.size(), 1U);
  EXPECT_EQ(sweep.data[0].files, (std::vector<std::string>{"news.jsonl"}));
  const Sweep::Needs a = sweep.needs_of("a"), b = sweep.needs_of("b");
  EXPECT_EQ(a.prefixes, (std::set<int64_t>{8, 16, 32}));
  EXPECT_EQ(a.data, (std::map<std::string, std::set<int64_t>>{{"test", {}}}));
  EXPECT_EQ(b.prefixes, (std::set<int64_t>{8, 16}));
  EXPECT_EQ(b.data, (std::map<std::string, std::set<int64_t>>{{"news", {10, 20}}, {"test", {}}}));
}

TEST_F(SweepFile, SaysWhatIsWrongAndWhere) {
  for (const auto& [text, expected] : std::vector<std::pair<std::string, std::string>>{
           {with("seeds = [1, 2, 3]", "seed = 1"), "seed is unknown here"},
           {with("experiment = \"a.toml\"\n", ""), "experiment must be there"},
           {with("seeds = [1, 2, 3]", "seeds = [1, -2]"), "must not be negative"},
           {with("seeds = [1, 2, 3]", "seeds = [1, 1]"), "has one twice"},
           {with("seeds = [1, 2, 3]", "seeds = 1.5"), "must be an integer, or a list"},
           {with("seeds = [1, 2, 3]", "seeds = []"), "must not be empty"},
           {with("name = \"b\"", "name = \"a\""), "'a' is there twice"},
           {with("name = \"b\"", "name = \"../b\""), "must be of letters"},
           {with("run = \"b\", label", "run = \"c\", label"), "'c' is no [[run]]"},
           {with("run = \"b\", label", "model = \"b\", label"), "run must be there"},
           {with("prefix = 32", "prefix = \"32\""), "prefix must be an integer"},
           {with("seeds = [4, 3, 2]", "seeds = 9"), "no seed in common"},
           {with("reference = {", "# {"), "reference must be there"},
           {with("rows = [{", "rows = [3, {"), "rows must be there"},
           {with("data = \"news\"", "data = \"old\""), "'old' is neither test nor validation"},
           {with("name = \"news\"", "name = \"test\""), "'test' is there twice"},
           {with("files = \"news.jsonl\"", "files = []"), "files must not be empty"},
           {with("step = [20, 10]", "step = 0.5"), "step must be an integer"},
           {with("[[table]]\nname = \"t\"", "[[run]]\nname = \"t\""), "reference is unknown here"},
           {"experiment = \"a.toml\"", "run must be there"},
           {"experiment = ", "1"}}) {
    const std::string said = complaint(text);
    EXPECT_NE(said.find(expected), std::string::npos) << said << "\n" << text;
    EXPECT_EQ(said.find(path_.string()), 0U) << said;
  }
}

}  // namespace
}  // namespace smalltalk
