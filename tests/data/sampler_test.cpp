#include "smalltalk/data/sampler.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "files.hpp"
#include "smalltalk/data/token_writer.hpp"

namespace smalltalk {
namespace {

using namespace test;

// Token i of the file is i, so that a row shows where it was taken.
std::shared_ptr<const TokenFile> counting_tokens(const TemporaryFolder& folder, int64_t size) {
  TokenFileInfo info;
  info.num_tokens = size;
  info.num_documents = 1;
  info.vocab_size = size;
  const auto path = folder / "tokens.h5";
  TokenWriter writer(path, path, info, {"unknown"});
  std::vector<uint32_t> tokens(static_cast<size_t>(size));
  std::iota(tokens.begin(), tokens.end(), 0u);
  writer.add_tokens(tokens);
  writer.add_documents(std::vector<uint64_t>{static_cast<uint64_t>(size)},
                       std::vector<uint16_t>{0});
  writer.finish();
  return std::make_shared<const TokenFile>(path);
}

std::vector<int64_t> read_rows(const RowSource& source, int64_t first, int64_t count) {
  std::vector<int64_t> tokens(static_cast<size_t>(count * source.row_tokens));
  source.read(first, count, tokens);
  return tokens;
}

// The sequences that rows were taken from.
std::vector<int64_t> origins(const RowSource& source, int64_t first, int64_t count,
                             int64_t length) {
  const auto tokens = read_rows(source, first, count);
  std::vector<int64_t> result;
  for (int64_t i = 0; i < count; ++i) {
    result.push_back(tokens[static_cast<size_t>(i * source.row_tokens)] / length);
  }
  return result;
}

TEST(Sampler, EachEpochIsAPermutationOfItsOwn) {
  const TemporaryFolder folder;
  const RowSource source = shuffled_rows(counting_tokens(folder, 1001), {}, 10, 11, 5);
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    auto order = origins(source, epoch * 100, 100, 10);
    orders.insert(order);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  }
  EXPECT_EQ(orders.size(), 5u);
}

TEST(Sampler, ARowIsASequenceWithItsLastTarget) {
  const TemporaryFolder folder;
  const RowSource source = shuffled_rows(counting_tokens(folder, 1001), {}, 10, 11, 5);
  const auto rows = read_rows(source, 0, 100);
  for (size_t i = 0; i < 100; ++i) {
    EXPECT_EQ(rows[i * 11] % 10, 0);
    for (size_t j = 1; j < 11; ++j) EXPECT_EQ(rows[i * 11 + j], rows[i * 11] + static_cast<int>(j));
  }
}

TEST(Sampler, RandomAccessEqualsSequential) {
  const TemporaryFolder folder;
  const RowSource source = shuffled_rows(counting_tokens(folder, 501), {1, 3, 7, 20, 44}, 10, 4, 9);
  const auto all = read_rows(source, 0, 30);
  for (int64_t first = 29; first >= 0; --first) {
    for (int64_t count : {int64_t{1}, std::min<int64_t>(7, 30 - first)}) {
      const auto some = read_rows(source, first, count);
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + first * 4));
    }
  }
}

TEST(Sampler, TheSeedDecidesTheOrder) {
  const TemporaryFolder folder;
  const auto tokens = counting_tokens(folder, 1001);
  const auto order = [&](uint64_t seed) {
    return origins(shuffled_rows(tokens, {}, 10, 11, seed), 0, 100, 10);
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
}

TEST(Sampler, OnlyTheShardsSequencesAreDrawn) {
  const TemporaryFolder folder;
  const auto tokens = counting_tokens(folder, 1001);
  const std::vector<uint64_t> shard = {2, 5, 98};
  auto drawn = origins(shuffled_rows(tokens, shard, 10, 11, 1), 3, 3, 10);
  std::sort(drawn.begin(), drawn.end());
  EXPECT_EQ(drawn, (std::vector<int64_t>{2, 5, 98}));
  EXPECT_EQ(origins(ordered_rows(tokens, {98, 2}, 10, 3), 0, 2, 10), (std::vector<int64_t>{98, 2}));
}

TEST(Sampler, RowsMayBeNumberedFromAnother) {
  const TemporaryFolder folder;
  const auto tokens = counting_tokens(folder, 501);
  const RowSource from_0 = shuffled_rows(tokens, {1, 3, 7, 20, 44}, 10, 4, 9);
  const RowSource from_32 = numbered_from(32, from_0);
  EXPECT_EQ(from_32.row_tokens, 4);
  EXPECT_EQ(read_rows(from_32, 32, 12), read_rows(from_0, 0, 12));
  EXPECT_EQ(read_rows(from_32, 39, 2), read_rows(from_0, 7, 2));
  const auto sequences = origins(from_0, 0, 12, 10);
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(from_32.sequence_of(32 + static_cast<int64_t>(i)), sequences[i]);
  }
  EXPECT_FALSE(numbered_from(32, ordered_rows(tokens, {}, 10, 4)).sequence_of);
}

TEST(Sampler, RefusesWhatDoesNotFit) {
  const TemporaryFolder folder;
  const auto tokens = counting_tokens(folder, 101);
  const auto make = [&](std::vector<uint64_t> sequences, int64_t length, int64_t row) {
    return complaint_of([&] { shuffled_rows(tokens, sequences, length, row, 1); });
  };
  EXPECT_EQ(make({9}, 10, 11), "");
  EXPECT_TRUE(mentions(make({10}, 10, 11), "belong together"));
  EXPECT_TRUE(mentions(make({}, 10, 12), "12 tokens"));
  EXPECT_TRUE(mentions(make({}, 101, 5), "less than one sequence"));
  const RowSource ordered = ordered_rows(tokens, {}, 10, 11);
  EXPECT_TRUE(mentions(complaint_of([&] { read_rows(ordered, 8, 3); }), "of 10"));
}

}  // namespace
}  // namespace smalltalk
