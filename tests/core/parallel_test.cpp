#include "smalltalk/core/system/parallel.hpp"

#include <gtest/gtest.h>

namespace smalltalk {
namespace {

TEST(PartOfRange, PartsTileTheRange) {
  for (const int64_t size : {0, 1, 7, 64, 1000}) {
    for (const int parts : {1, 2, 3, 8}) {
      int64_t next = 0;
      for (int i = 0; i < parts; ++i) {
        const auto [begin, end] = part_of_range(size, i, parts, 16);
        EXPECT_EQ(begin, next);
        EXPECT_TRUE(begin % 16 == 0 || begin == size);
        next = end;
      }
      EXPECT_EQ(next, size);
    }
  }
}

}  // namespace
}  // namespace smalltalk
