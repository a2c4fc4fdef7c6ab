// Python's random.Random, so that what lm-evaluation-harness draws under a seed is drawn here, too.
// Private to mixture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace smalltalk {

class PythonRandom {
 public:
  explicit PythonRandom(uint64_t seed);

  double random();                 // in [0, 1)
  uint32_t randbelow(uint32_t n);  // in [0, n); REQUIRES n >= 1
  // Indices of sample(population of this size, k). REQUIRES k <= size.
  std::vector<size_t> sample(size_t size, size_t k);

 private:
  std::mt19937 generator_;
};

}  // namespace smalltalk
