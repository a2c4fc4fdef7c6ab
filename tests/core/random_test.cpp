#include "smalltalk/core/system/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

using Words = std::array<uint32_t, 4>;

// The vectors of the Random123 distribution (tests/kat_vectors); the last is made of digits of pi.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(DeriveSeed, DifferentArgumentsGiveDifferentKeys) {
  std::set<uint64_t> seen;
  size_t count = 0;
  for (uint64_t seed : {0, 1, 2, 1000}) {
    for (const char* purpose : {"", "a", "b", "router init", "router init "}) {
      for (uint64_t a = 0; a < 20; ++a) {
        for (uint64_t b = 0; b < 20; ++b, ++count) seen.insert(derive_seed(seed, purpose, a, b));
      }
    }
  }
  EXPECT_EQ(seen.size(), count);
}

TEST(DeriveSeed, HighHalvesOfArgumentsCount) {
  const uint64_t high = uint64_t{1} << 40;
  EXPECT_NE(derive_seed(1, "x", high), derive_seed(1, "x"));
  EXPECT_NE(derive_seed(1, "x", 0, high), derive_seed(1, "x"));
  EXPECT_NE(derive_seed(1 + high, "x"), derive_seed(1, "x"));
}

TEST(DeriveSeed, NeighboursDifferInHalfTheBits) {
  int different = 0;
  for (uint64_t a = 0; a < 1000; ++a) {
    different += std::popcount(derive_seed(7, "x", a) ^ derive_seed(7, "x", a + 1));
  }
  EXPECT_NEAR(different / 1000.0, 32, 1);
}

// A change of these values would make old runs impossible to resume.
TEST(DeriveSeed, StaysWhatItWas) {
  EXPECT_EQ(derive_seed(1, "router init", 2, 3), derive_seed(1, "router init", 2, 3));
  EXPECT_EQ(derive_seed(1, "router init", 2, 3), 9292977438426225726U);
  EXPECT_EQ(Permutation(1000, 42)(0), 853U);
  EXPECT_EQ(Permutation(1'000'000'000'000, 42)(123'456'789), 819247697605U);
}

class PermutationSizes : public testing::TestWithParam<uint64_t> {};

TEST_P(PermutationSizes, TakesEachValueOnce) {
  const uint64_t size = GetParam();
  for (uint64_t key = 0; key < 5; ++key) {
    const Permutation permutation(size, key);
    EXPECT_EQ(permutation.size(), size);
    std::vector<bool> taken(size);
    for (uint64_t index = 0; index < size; ++index) {
      const uint64_t value = permutation(index);
      ASSERT_LT(value, size);
      ASSERT_FALSE(taken[value]);
      taken[value] = true;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PermutationSizes,
                         testing::Values(1, 2, 3, 4, 5, 7, 15, 16, 17, 63, 64, 65, 255, 256, 257,
                                         1000, 4095, 4096, 4097, 20000));

TEST(Permutation, RefusesNothingAndOutside) {
  EXPECT_THROW(Permutation(0, 1), Error);
  EXPECT_THROW(Permutation(5, 1)(5), Error);
}

TEST(Permutation, HandlesHugeSizes) {
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  for (const uint64_t size : {kMost, kMost / 2, uint64_t{1} << 62, (uint64_t{1} << 62) + 1}) {
    const Permutation permutation(size, 3);
    std::set<uint64_t> values;
    for (uint64_t index = 0; index < 1000; ++index) {
      values.insert(permutation(index));
      values.insert(permutation(size - 1 - index));
    }
    EXPECT_EQ(values.size(), 2000U);
    EXPECT_LT(*values.rbegin(), size);
  }
}

// Over many keys every order of a few elements comes up about equally often. Not exactly, even with
// ideal round functions: a Feistel network of more than two bits makes even permutations only.
TEST(Permutation, AllOrdersAreAboutEquallyLikely) {
  for (const uint64_t size : {3, 4, 5}) {
    const uint64_t orders = size == 3 ? 6 : size == 4 ? 24 : 120;
    const uint64_t trials = 1000 * orders;
    std::map<std::vector<uint64_t>, double> counts;
    for (uint64_t key = 0; key < trials; ++key) {
      const Permutation permutation(size, key);
      std::vector<uint64_t> order;
      for (uint64_t index = 0; index < size; ++index) order.push_back(permutation(index));
      ++counts[order];
    }
    ASSERT_EQ(counts.size(), orders);
    for (const auto& [order, count] : counts) {
      EXPECT_NEAR(count, 1000, size < 5 ? 150 : 400) << "size " << size;
    }
  }
}

TEST(Permutation, NeighboursLandFarApart) {
  constexpr uint64_t kSize = 100'000;
  const Permutation permutation(kSize, 11);
  double distance = 0;
  for (uint64_t index = 0; index + 1 < kSize; ++index) {
    const auto here = static_cast<double>(permutation(index));
    distance += std::abs(here - static_cast<double>(permutation(index + 1)));
  }
  EXPECT_NEAR(distance / kSize / kSize, 1.0 / 3, 0.01);  // of two uniform draws
}

}  // namespace
}  // namespace smalltalk
