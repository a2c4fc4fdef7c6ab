// The loader gives the rows of its plan in order, reads no others, and hands on what goes wrong.
#include "lm/train/batch_loader.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <set>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kRowTokens = 3;
constexpr int64_t kVocabSize = 1000;

// Row r is {r, r, r}; notes which rows were read.
struct NumberedRows {
  std::mutex mutex;
  std::set<int64_t> read;
  std::atomic<int> calls{0};

  RowSource source() {
    return {kRowTokens, [this](int64_t first, int64_t count, std::span<int64_t> tokens) {
              for (int64_t i = 0; i < count; ++i) {
                std::fill_n(tokens.begin() + i * kRowTokens, kRowTokens, first + i);
              }
              const std::lock_guard lock(mutex);
              for (int64_t i = 0; i < count; ++i) read.insert(first + i);
              ++calls;
            }};
  }
};

std::vector<int64_t> row_numbers(std::span<const int64_t> tokens) {
  std::vector<int64_t> rows;
  for (size_t i = 0; i < tokens.size(); i += kRowTokens) rows.push_back(tokens[i]);
  return rows;
}

TEST(BatchLoaderTest, GivesTheRowsOfARankAndReadsNoOthers) {
  NumberedRows rows;
  {
    // Rank 1 of 2 in steps 3 and 4 of 8 rows: rows 28 .. 31 and 36 .. 39.
    BatchLoader loader(rows.source(), kVocabSize, {8, 1, 2, 2, 3, 5});
    for (const std::vector<int64_t>& expected :
         {std::vector<int64_t>{28, 29}, {30, 31}, {36, 37}, {38, 39}}) {
      EXPECT_EQ(row_numbers(loader.next()), expected);
    }
    EXPECT_THROW(loader.next(), std::exception);  // the plan is at its end
  }
  EXPECT_EQ(rows.read, (std::set<int64_t>{28, 29, 30, 31, 36, 37, 38, 39}));
}

void wait_for_calls(const NumberedRows& rows, int calls) {
  for (int i = 0; i < 10000 && rows.calls < calls; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(rows.calls, calls);
}

TEST(BatchLoaderTest, ReadsTwoAheadAndLeavesTheBatchInUseAlone) {
  NumberedRows rows;
  BatchLoader loader(rows.source(), kVocabSize, {4, 0, 1, 4, 0, 100});
  wait_for_calls(rows, 2);
  const auto batch = loader.next();
  wait_for_calls(rows, 3);  // without a call of next()
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(rows.calls, 3);
  EXPECT_EQ(row_numbers(batch), (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(row_numbers(loader.next()), (std::vector<int64_t>{4, 5, 6, 7}));
}  // ends with 98 batches unread

TEST(BatchLoaderTest, AnErrorComesAfterTheBatchesBeforeIt) {
  NumberedRows rows;
  RowSource source = rows.source();
  const auto read = source.read;
  source.read = [&](int64_t first, int64_t count, std::span<int64_t> tokens) {
    if (first == 2) throw Error("the disk is on fire");
    read(first, count, tokens);
  };
  BatchLoader loader(source, kVocabSize, {1, 0, 1, 1, 0, 10});
  wait_for_calls(rows, 2);
  EXPECT_EQ(loader.next()[0], 0);
  EXPECT_EQ(loader.next()[0], 1);
  for (int i = 0; i < 2; ++i) {
    try {
      loader.next();
      FAIL();
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "the disk is on fire");
    }
  }
}

TEST(BatchLoaderTest, RefusesTokensOutsideTheVocabulary) {
  NumberedRows rows;
  BatchLoader loader(rows.source(), /*vocab_size=*/2, {1, 0, 1, 1, 0, 3});
  EXPECT_NO_THROW(loader.next());
  EXPECT_NO_THROW(loader.next());
  EXPECT_THROW(loader.next(), Error);
}

}  // namespace
}  // namespace smalltalk
