#include "smalltalk/core/assignment/score_matrix.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <utility>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

TEST(ScoreMatrix, IsRowMajorAndStartsAtZero) {
  ScoreMatrix scores(3, 2);
  EXPECT_EQ(scores.num_sequences(), 3);
  EXPECT_EQ(scores.num_experts(), 2);
  ASSERT_EQ(scores.values().size(), 6U);
  for (const float value : scores.values()) EXPECT_EQ(value, 0);
  scores.row(1)[0] = 5;
  EXPECT_EQ(scores.values()[2], 5);
  EXPECT_EQ(std::as_const(scores).row(1)[0], 5);
}

TEST(ScoreMatrix, RefusesImpossibleSizes) {
  EXPECT_THROW(ScoreMatrix(-1, 2), Error);
  EXPECT_THROW(ScoreMatrix(1, 0), Error);
  EXPECT_THROW(ScoreMatrix(1, 65536), Error);
  EXPECT_THROW(ScoreMatrix(std::numeric_limits<int64_t>::max(), 2), Error);
  EXPECT_EQ(ScoreMatrix(0, 65535).num_sequences(), 0);
}

TEST(ScoreMatrix, RefusesRowsOutside) {
  ScoreMatrix scores(3, 2);
  EXPECT_THROW(scores.row(3), Error);
  EXPECT_THROW(std::as_const(scores).row(-1), Error);
}

}  // namespace
}  // namespace smalltalk
