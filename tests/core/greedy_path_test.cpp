#include "smalltalk/core/assignment/greedy_path.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "smalltalk/core/system/random.hpp"

namespace smalltalk {
namespace {

constexpr uint32_t kNone = kNoNeighbour;

TEST(GreedyPath, GoesToTheNearestUnusedNeighbourAndBeginsAnewWithTheSmallestId) {
  const GreedyPath path = greedy_path({{2, 1,          //
                                        0, 2,          //
                                        0, 4,          //
                                        kNone, kNone,  //
                                        2, 0},
                                       2});
  EXPECT_EQ(path.points, (std::vector<uint64_t>{0, 2, 4, 1, 3}));
  EXPECT_EQ(path.restarts, 2);
}

TEST(GreedyPath, WithoutNeighboursPointsKeepTheirOrder) {
  EXPECT_EQ(greedy_path({{kNone, kNone, kNone}, 1}).points, (std::vector<uint64_t>{0, 1, 2}));
  EXPECT_TRUE(greedy_path({}).points.empty());
}

TEST(GreedyPath, IsWhatItsDefinitionSays) {
  constexpr uint64_t kPoints = 60, kCount = 4;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Neighbours neighbours{{}, kCount};
    for (uint64_t i = 0; i < kPoints * kCount; ++i) {
      const uint64_t id = derive_seed(seed, "neighbour", i) % (kPoints + 5);
      neighbours.ids.push_back(id < kPoints ? static_cast<uint32_t>(id) : kNone);
    }
    for (uint64_t i = 0; i < kPoints; ++i) {  // none behind the last one
      const auto row = neighbours.ids.begin() + static_cast<std::ptrdiff_t>(i * kCount);
      std::fill(std::find(row, row + kCount, kNone), row + kCount, kNone);
    }
    std::set<uint64_t> unused;
    for (uint64_t i = 0; i < kPoints; ++i) unused.insert(i);
    std::vector<uint64_t> expected;
    while (!unused.empty()) {
      uint64_t next = *unused.begin();
      if (!expected.empty()) {
        for (const uint32_t id : neighbours.of(static_cast<int64_t>(expected.back()))) {
          if (!unused.contains(id)) continue;
          next = id;
          break;
        }
      }
      expected.push_back(next);
      unused.erase(next);
    }
    EXPECT_EQ(greedy_path(neighbours).points, expected) << "seed " << seed;
  }
}

}  // namespace
}  // namespace smalltalk
