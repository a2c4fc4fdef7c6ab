#include "mixture/evaluation/python_random.hpp"

#include <gtest/gtest.h>

namespace smalltalk {
namespace {

// What CPython 3.11 gives.
TEST(PythonRandomTest, DrawsWhatPythonDraws) {
  PythonRandom random(1234);
  EXPECT_EQ(random.random(), 0x1.eed2ff71cd77dp-1);
  EXPECT_EQ(random.random(), 0x1.c34f680ef4f52p-2);
  EXPECT_EQ(random.random(), 0x1.eaf602e68d680p-8);
  const auto sample = [](uint64_t seed, size_t size, size_t k) {
    return PythonRandom(seed).sample(size, k);
  };
  using Indices = std::vector<size_t>;
  EXPECT_EQ(sample(0, 10, 4), (Indices{6, 9, 0, 2}));
  EXPECT_EQ(sample(1234, 22, 3), (Indices{14, 3, 0}));
  EXPECT_EQ(sample(5, 85, 6), (Indices{79, 32, 45, 67, 3, 59}));
  EXPECT_EQ(sample(5, 86, 6), (Indices{79, 32, 45, 83, 67, 3}));
  EXPECT_EQ(sample(5, 1000, 6), (Indices{637, 261, 759, 367, 814, 707}));
  EXPECT_EQ(sample((uint64_t{1} << 40) + 3, 1000, 3), (Indices{225, 62, 562}));
  EXPECT_EQ(sample(uint64_t{1} << 32, 7, 7), (Indices{0, 2, 3, 6, 4, 1, 5}));
  PythonRandom several(9);
  EXPECT_EQ(several.sample(30, 3), (Indices{14, 19, 11}));
  EXPECT_EQ(several.sample(30, 3), (Indices{8, 4, 5}));
  EXPECT_EQ(several.sample(30, 3), (Indices{27, 21, 0}));
}

}  // namespace
}  // namespace smalltalk
