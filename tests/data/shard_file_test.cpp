#include "smalltalk/data/shard_file.hpp"

#include <nlohmann/json.hpp>

#include "data/hdf5_file.hpp"
#include "files.hpp"
#include "smalltalk/data/score_file.hpp"

namespace smalltalk {
namespace {

using namespace test;

const std::vector<uint16_t> kAssignment = {2, 0, 2, 1, 0, 2};

TEST(ShardFile, GroupsAnAssignmentByExpert) {
  const Shards shards = make_shards(kAssignment, 4, {}, {});
  EXPECT_EQ(shards.offsets, (std::vector<uint64_t>{0, 2, 3, 6, 6}));
  EXPECT_EQ(shards.sequences, (std::vector<uint64_t>{1, 4, 3, 0, 2, 5}));
  EXPECT_EQ(shards.num_experts(), 4);
  EXPECT_EQ(shards.of_expert(2).size(), 3u);
  EXPECT_TRUE(shards.of_expert(3).empty());
  EXPECT_THROW(shards.of_expert(4), Error);
}

TEST(ShardFile, RoundTrip) {
  const TemporaryFolder folder;
  const std::vector<uint64_t> chunk = {3, 10, 11, 40, 41, 99};
  const Provenance provenance = {{"seed", "7"}, {"tokens", "äöü"}, {"empty", ""}};
  for (const auto& ids : {std::vector<uint64_t>{}, chunk}) {
    const Shards shards = make_shards(kAssignment, 3, ids, provenance);
    write_shards(folder / "s.h5", shards);
    const Shards read = read_shards(folder / "s.h5");
    EXPECT_EQ(read.expert, shards.expert);
    EXPECT_EQ(read.offsets, shards.offsets);
    EXPECT_EQ(read.sequences, shards.sequences);
    EXPECT_EQ(read.chunk, ids);
    EXPECT_EQ(read.provenance, provenance);
  }
  EXPECT_EQ(make_shards(kAssignment, 3, chunk, {}).of_expert(0)[1], 41u);
}

TEST(ShardFile, EqualShardsGiveEqualBytes) {
  const TemporaryFolder folder;
  const Shards shards = make_shards(kAssignment, 3, {}, {{"seed", "7"}});
  write_shards(folder / "a.h5", shards);
  write_shards(folder / "b.h5", shards);
  EXPECT_TRUE(read_text(folder / "a.h5") == read_text(folder / "b.h5"));
}

TEST(ShardFile, RefusesADisagreement) {
  const TemporaryFolder folder;
  const auto complaint = [&](auto change) {
    Shards shards = make_shards(kAssignment, 3, {}, {});
    change(shards);
    write_shards(folder / "s.h5", shards);
    return complaint_of([&] { read_shards(folder / "s.h5"); });
  };
  EXPECT_EQ(complaint([](Shards&) {}), "");
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.expert[0] = 1; }), "disagree"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.expert[0] = 9; }), "/expert[0] is 9"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.offsets[1] = 5; }), "/offsets"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.offsets[3] = 5; }), "/offsets"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { std::swap(s.sequences[0], s.sequences[1]); }),
                       "disagree"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.sequences.pop_back(); }), "differ in size"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.chunk = {1, 2}; }), "/chunk"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.chunk = {1, 2, 3, 4, 5, 5}; }), "s.h5"));
}

TEST(ShardFile, RefusesAScoreFile) {
  const TemporaryFolder folder;
  write_scores(folder / "scores.h5", ScoreMatrix(3, 2), {});
  EXPECT_TRUE(
      mentions(complaint_of([&] { read_shards(folder / "scores.h5"); }), "smalltalk scores"));
}

TEST(ScoreFile, RoundTrip) {
  const TemporaryFolder folder;
  ScoreMatrix scores(5, 3);
  for (size_t i = 0; i < 15; ++i) scores.values()[i] = -0.1f * static_cast<float>(i);
  write_scores(folder / "scores.h5", scores, {{"routers", "abc"}});
  Provenance provenance;
  const ScoreMatrix read = read_scores(folder / "scores.h5", &provenance);
  EXPECT_EQ(read.num_sequences(), 5);
  EXPECT_EQ(read.num_experts(), 3);
  EXPECT_TRUE(std::equal(read.values().begin(), read.values().end(), scores.values().begin()));
  EXPECT_EQ(provenance, (Provenance{{"routers", "abc"}}));
}

TEST(ScoreFile, TakesScoresOfOtherProgramsButNotOtherTypes) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1, 2, 3, 4};
  Hdf5File good = Hdf5File::create(folder / "a.h5", folder / "a.h5");
  good.write<float>("scores", values, {2, 2});
  good.close();
  EXPECT_EQ(read_scores(folder / "a.h5").row(1)[0], 3);
  Hdf5File flat = Hdf5File::create(folder / "b.h5", folder / "b.h5");
  flat.write<float>("scores", values);
  flat.close();
  EXPECT_TRUE(mentions(complaint_of([&] { read_scores(folder / "b.h5"); }), "[N, E]"));
  Hdf5File other = Hdf5File::create(folder / "c.h5", folder / "c.h5");
  other.write<uint32_t>("scores", std::vector<uint32_t>{1, 2}, {1, 2});
  other.close();
  EXPECT_TRUE(mentions(complaint_of([&] { read_scores(folder / "c.h5"); }), "type"));
}

TEST(DescribeHdf5, SaysWhatAFileIs) {
  const TemporaryFolder folder;
  write_scores(folder / "scores.h5", ScoreMatrix(3, 2), {{"seed", "5"}});
  const auto scores = nlohmann::json::parse(describe_hdf5(folder / "scores.h5"));
  EXPECT_EQ(scores["kind"], "scores");
  EXPECT_EQ(scores["num_sequences"], 3);
  EXPECT_EQ(scores["version"], 1);
  EXPECT_EQ(scores["attributes"]["seed"], "5");
  write_shards(folder / "shards.h5", make_shards(kAssignment, 3, {}, {}));
  const auto shards = nlohmann::json::parse(describe_hdf5(folder / "shards.h5"));
  EXPECT_EQ(shards["kind"], "shards");
  EXPECT_EQ(shards["sequences_by_expert"], nlohmann::json({2, 1, 3}));
  const std::vector<uint64_t> chunk = {3, 10, 11, 40, 41, 99};
  write_shards(folder / "round.h5", make_shards(kAssignment, 3, chunk, {}));
  EXPECT_EQ(nlohmann::json::parse(describe_hdf5(folder / "round.h5"))["kind"], "round");
  EXPECT_THROW(describe_hdf5(write_bytes(folder / "x.h5", "x")), Error);
}

}  // namespace
}  // namespace smalltalk
