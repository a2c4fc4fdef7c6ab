#include "smalltalk/data/shard_file.hpp"

#include <nlohmann/json.hpp>

#include "data/hdf5_file.hpp"
#include "data/shard_format.hpp"
#include "files.hpp"
#include "smalltalk/core/system/files.hpp"
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

AssignmentRule some_rule(size_t num_experts = 3) {
  return {AssignmentMethod::optimal,
          std::vector<int64_t>(num_experts, int64_t{1} << 40),
          {{2, {7, uint64_t{1} << 39}}, {0, {4'000'000'000, 3}}},
          std::vector<double>(num_experts, -1e-300)};
}

TEST(ShardFile, KeepsTheRule) {
  const TemporaryFolder folder;
  write_shards(folder / "s.h5", make_shards(kAssignment, 3, {}, {{"seed", "7"}}, some_rule(), 2));
  for (const auto& [rule, kept, provenance] :
       {std::tuple{read_shards(folder / "s.h5").rule, read_shards(folder / "s.h5").kept_sequences,
                   read_shards(folder / "s.h5").provenance},
        std::tuple{read_shard_info(folder / "s.h5").rule,
                   read_shard_info(folder / "s.h5").kept_sequences,
                   read_shard_info(folder / "s.h5").provenance}}) {
    EXPECT_EQ(rule.method, AssignmentMethod::optimal);
    EXPECT_EQ(rule.capacities, some_rule().capacities);
    EXPECT_EQ(rule.closings, some_rule().closings);
    EXPECT_EQ(rule.prices, some_rule().prices);
    EXPECT_EQ(kept, 2);
    EXPECT_EQ(provenance, (Provenance{{"seed", "7"}}));
  }
  write_shards(folder / "t.h5", make_shards(kAssignment, 3, {}, {}));
  const ShardInfo plain = read_shard_info(folder / "t.h5");
  EXPECT_EQ(plain.rule.method, AssignmentMethod::greedy);
  EXPECT_TRUE(plain.rule.capacities.empty() && plain.rule.closings.empty() &&
              plain.rule.prices.empty());
}

TEST(ShardFile, TheContentHashIsOfWhoGotWhat) {
  const TemporaryFolder folder;
  const auto hash = [&](const Shards& shards) {
    write_shards(folder / "s.h5", shards);
    return read_shard_info(folder / "s.h5").content_hash;
  };
  const std::vector<uint64_t> chunk = {3, 10, 11, 40, 41, 99};
  const std::vector<uint64_t> other_chunk = {3, 10, 11, 40, 41, 100};
  const std::string plain = hash(make_shards(kAssignment, 3, {}, {}));
  EXPECT_EQ(hash(make_shards(kAssignment, 3, {}, {{"seed", "7"}}, some_rule(), 1)), plain);
  EXPECT_NE(hash(make_shards(kAssignment, 4, {}, {})), plain);
  EXPECT_NE(hash(make_shards(std::vector<uint16_t>{2, 0, 2, 1, 2, 0}, 3, {}, {})), plain);
  const std::string of_chunk = hash(make_shards(kAssignment, 3, chunk, {}));
  EXPECT_NE(of_chunk, plain);
  EXPECT_NE(of_chunk, hash(make_shards(kAssignment, 3, other_chunk, {})));
}

// More than one buffer of the writer, some experts without any.
TEST(ShardFile, WrittenInPartsItHasTheSameBytes) {
  const TemporaryFolder folder;
  constexpr uint64_t kSize = 2'300'000;
  std::vector<uint16_t> assignment(kSize);
  std::vector<uint64_t> chunk(kSize);
  for (uint64_t i = 0; i < kSize; ++i) {
    assignment[i] = static_cast<uint16_t>(1 + i * i % 7 % 5);
    chunk[i] = (uint64_t{1} << 40) + 3 * i;
  }
  for (const auto& ids : {std::vector<uint64_t>{}, chunk}) {
    const Shards shards = make_shards(assignment, 7, ids, {{"seed", "7"}}, some_rule(7));
    write_shards(folder / "whole.h5", shards);
    std::vector<int64_t> counts;
    for (int e = 0; e < 7; ++e) counts.push_back(static_cast<int64_t>(shards.of_expert(e).size()));
    ShardWriter writer(folder / "parts.h5", folder / "parts.h5", counts, shards.rule, 0, ids,
                       shards.provenance);
    const std::span<const uint16_t> all = assignment;
    for (size_t first = 0, size = 1; first < all.size(); first += size, size = size * 3 + 1) {
      writer.add(all.subspan(first, std::min(size, all.size() - first)));
      writer.add({});
    }
    writer.finish();
    EXPECT_TRUE(read_text(folder / "parts.h5") == read_text(folder / "whole.h5"));
    EXPECT_EQ(read_shards(folder / "parts.h5").sequences, shards.sequences);
    for (int e = 0; e < 7; ++e) {
      const auto expected = shards.of_expert(e);
      const std::vector<uint64_t> read = read_shard(folder / "parts.h5", e);
      EXPECT_TRUE(std::equal(read.begin(), read.end(), expected.begin(), expected.end())) << e;
      EXPECT_EQ(read_shard_info(folder / "parts.h5").size_of(e),
                static_cast<int64_t>(expected.size()));
    }
  }
  EXPECT_THROW(read_shard(folder / "parts.h5", 7), Error);
  EXPECT_THROW(read_shard(folder / "parts.h5", -1), Error);
}

TEST(ShardFile, TheWriterRefusesOtherCountsThanItWasTold) {
  const TemporaryFolder folder;
  const auto complaint = [&](const std::vector<uint16_t>& experts) {
    ShardWriter writer(folder / "a.h5", folder / "a.h5", std::vector<int64_t>{2, 1}, {}, 0, {}, {});
    return complaint_of([&] {
      writer.add(experts);
      writer.finish();
    });
  };
  EXPECT_EQ(complaint({0, 1, 0}), "");
  EXPECT_NE(complaint({0, 1, 1}), "");
  EXPECT_NE(complaint({0, 1}), "");
  EXPECT_NE(complaint({0, 1, 0, 0}), "");
  EXPECT_NE(complaint({0, 2, 0}), "");
}

TEST(ShardFile, AnExpertsPartOnlyNeedsItsOwnPieces) {
  const TemporaryFolder folder;
  std::vector<uint16_t> assignment(600'000);  // 4.6 MiB of /sequences
  for (size_t i = 0; i < assignment.size(); ++i) assignment[i] = static_cast<uint16_t>(i % 3);
  write_shards(folder / "s.h5", make_shards(assignment, 3, {}, {}));
  const int64_t offset = Hdf5File::open(folder / "s.h5").contiguous_offset("sequences");
  std::string bytes = read_text(folder / "s.h5");
  bytes[static_cast<size_t>(offset)] = 'x';
  write_bytes(folder / "s.h5", bytes);
  EXPECT_EQ(read_shard(folder / "s.h5", 2).size(), 200'000u);
  const auto complain = [&](auto f) { return complaint_of(f); };
  const std::string place = "s.h5: /sequences is damaged near element 0";
  EXPECT_TRUE(mentions(complain([&] { read_shard(folder / "s.h5", 0); }), place));
  EXPECT_TRUE(mentions(complain([&] { read_shards(folder / "s.h5"); }), place));
  EXPECT_TRUE(mentions(complain([&] { describe_hdf5(folder / "s.h5"); }), place));
}

// Shards that our own writer would never write.
void write_raw(const std::filesystem::path& path, const Shards& shards) {
  Hdf5File file = Hdf5File::create(path, path);
  file.write_format(kShardFormat);
  file.write_text_attribute("method", "greedy");
  file.write_integer_attribute("kept_sequences", shards.kept_sequences);
  file.create_dataset<uint16_t>("expert", static_cast<int64_t>(shards.expert.size()));
  file.write_at<uint16_t>("expert", 0, shards.expert);
  file.write<uint64_t>("offsets", shards.offsets);
  file.write<uint64_t>("sequences", shards.sequences);
  if (!shards.chunk.empty()) file.write<uint64_t>("chunk", shards.chunk);
  if (!shards.rule.prices.empty()) file.write<double>("prices", shards.rule.prices);
  const std::vector<uint64_t> capacities(shards.rule.capacities.begin(),
                                         shards.rule.capacities.end());
  if (!capacities.empty()) file.write<uint64_t>("capacities", capacities);
  file.write_text_attribute("content_hash",
                            shards_content_hash(shards.offsets, file.seal("expert"),
                                                shards.chunk.empty() ? std::vector<uint64_t>{}
                                                                     : file.checksums("chunk")));
  file.close();
}

TEST(ShardFile, RefusesADisagreement) {
  const TemporaryFolder folder;
  const auto complaint = [&](auto change) {
    Shards shards = make_shards(kAssignment, 3, {}, {});
    change(shards);
    write_raw(folder / "s.h5", shards);
    const std::string text = complaint_of([&] { read_shards(folder / "s.h5"); });
    EXPECT_EQ(complaint_of([&] { describe_hdf5(folder / "s.h5"); }), text);
    EXPECT_EQ(complaint_of([&] { write_shards(folder / "t.h5", shards); }).empty(), text.empty());
    return text;
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
  for (const size_t other : {2, 4}) {
    EXPECT_TRUE(mentions(complaint([&](Shards& s) { s.rule.prices = some_rule(other).prices; }),
                         "/prices is not one of each expert"));
    EXPECT_TRUE(
        mentions(complaint([&](Shards& s) { s.rule.capacities = some_rule(other).capacities; }),
                 "/capacities is not one of each expert"));
  }
  // Ids that are there twice, or not in order; /sequences says the same, so that nothing else is
  // wrong.
  const auto of_ids = [&](std::vector<uint64_t> ids) {
    return complaint([&](Shards& s) {
      s.chunk = ids;
      for (uint64_t& sequence : s.sequences) sequence = ids[sequence];
    });
  };
  EXPECT_EQ(of_ids({1, 2, 3, 4, 5, 6}), "");
  EXPECT_TRUE(mentions(of_ids({1, 2, 3, 4, 5, 5}), "/chunk does not ascend"));
  EXPECT_TRUE(mentions(of_ids({1, 2, 3, 5, 4, 6}), "/chunk does not ascend"));
  EXPECT_TRUE(mentions(complaint([](Shards& s) { s.kept_sequences = 7; }), "kept_sequences"));
}

TEST(ShardFile, RefusesAScoreFile) {
  const TemporaryFolder folder;
  write_scores(folder / "scores.h5", ScoreMatrix(3, 2), {});
  EXPECT_TRUE(
      mentions(complaint_of([&] { read_shards(folder / "scores.h5"); }), "smalltalk scores"));
}

TEST(DescribeHdf5, SaysWhatAFileIs) {
  const TemporaryFolder folder;
  write_scores(folder / "scores.h5", ScoreMatrix(3, 2), {{"seed", "5"}});
  const auto scores = nlohmann::json::parse(describe_hdf5(folder / "scores.h5"));
  EXPECT_EQ(scores["kind"], "scores");
  EXPECT_EQ(scores["num_sequences"], 3);
  EXPECT_EQ(scores["version"], 2);
  EXPECT_EQ(scores["attributes"]["seed"], "5");
  write_shards(folder / "shards.h5", make_shards(kAssignment, 3, {}, {}));
  const auto shards = nlohmann::json::parse(describe_hdf5(folder / "shards.h5"));
  EXPECT_EQ(shards["kind"], "shards");
  EXPECT_EQ(shards["sequences_by_expert"], nlohmann::json({2, 1, 3}));
  EXPECT_EQ(shards["method"], "greedy");
  EXPECT_FALSE(shards.contains("capacities"));
  const std::vector<uint64_t> chunk = {3, 10, 11, 40, 41, 99};
  write_shards(folder / "round.h5", make_shards(kAssignment, 3, chunk, {}, some_rule(), 4));
  const auto round = nlohmann::json::parse(describe_hdf5(folder / "round.h5"));
  EXPECT_EQ(round["kind"], "round");
  EXPECT_EQ(round["method"], "optimal");
  EXPECT_EQ(round["capacities"], nlohmann::json(some_rule().capacities));
  EXPECT_EQ(round["prices"], nlohmann::json(some_rule().prices));
  EXPECT_EQ(round["closings"][1],
            nlohmann::json({{"expert", 0}, {"rank", 4'000'000'000}, {"sequence", 3}}));
  EXPECT_EQ(round["kept_sequences"], 4);
  EXPECT_THROW(describe_hdf5(write_bytes(folder / "x.h5", "x")), Error);
}

}  // namespace
}  // namespace smalltalk
