#include <gtest/gtest.h>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

TEST(RandomAssignment, IsBalanced) {
  for (const int64_t num_experts : {1, 2, 3, 7, 32}) {
    for (const int64_t num_sequences : {0, 1, 32, 100, 1001}) {
      std::vector<int64_t> counts(static_cast<size_t>(num_experts));
      for (const uint16_t expert : random_assignment(num_sequences, num_experts, 5)) {
        ++counts.at(expert);
      }
      EXPECT_EQ(counts, balanced_capacities(num_sequences, num_experts));
    }
  }
}

TEST(RandomAssignment, IsAFunctionOfTheSeed) {
  EXPECT_EQ(random_assignment(1000, 4, 1), random_assignment(1000, 4, 1));
  EXPECT_NE(random_assignment(1000, 4, 1), random_assignment(1000, 4, 2));
}

// Neither halves of the corpus nor neighbouring sequences prefer an expert.
TEST(RandomAssignment, IgnoresThePlaceInTheCorpus) {
  constexpr int kSequences = 40'000;
  const Assignment assignment = random_assignment(kSequences, 4, 9);
  int first_half = 0;
  int same_as_next = 0;
  for (size_t i = 0; i < kSequences; ++i) {
    if (i < kSequences / 2 && assignment[i] == 0) ++first_half;
    if (i + 1 < kSequences && assignment[i] == assignment[i + 1]) ++same_as_next;
  }
  EXPECT_NEAR(first_half, kSequences / 8, 250);  // five standard deviations
  EXPECT_NEAR(same_as_next, kSequences / 4, 450);
}

TEST(RandomAssignment, RefusesImpossibleNumbers) {
  EXPECT_THROW(random_assignment(10, 0, 1), Error);
  EXPECT_THROW(random_assignment(-1, 2, 1), Error);
}

}  // namespace
}  // namespace smalltalk
