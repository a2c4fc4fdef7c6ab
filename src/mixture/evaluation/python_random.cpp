#include "mixture/evaluation/python_random.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <span>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

namespace {

// The generator's state for a seed, in the form in which std::mt19937 asks for it: init_by_array()
// of Matsumoto and Nishimura's mt19937ar.c, which CPython calls with the seed's 32-bit words.
class PythonSeed {
 public:
  using result_type = uint32_t;

  explicit PythonSeed(uint64_t seed)
      : words_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        num_words_(words_[1] == 0 ? 1 : 2) {}

  template <typename Iterator>
  void generate(Iterator first, Iterator last) const {
    const std::span state(first, last);
    const size_t size = state.size();
    state[0] = 19650218;
    for (uint32_t i = 1; i < size; ++i) state[i] = 1812433253 * mixed(state[i - 1]) + i;
    size_t i = 1;
    const auto advance = [&] {
      if (++i < size) return;
      state[0] = state[size - 1];
      i = 1;
    };
    for (size_t k = 0; k < size; ++k) {
      const size_t j = k % num_words_;
      state[i] =
          (state[i] ^ (mixed(state[i - 1]) * 1664525)) + words_[j] + static_cast<uint32_t>(j);
      advance();
    }
    for (size_t k = 1; k < size; ++k) {
      state[i] = (state[i] ^ (mixed(state[i - 1]) * 1566083941)) - static_cast<uint32_t>(i);
      advance();
    }
    state[0] = 0x80000000;
  }

 private:
  static uint32_t mixed(uint32_t word) { return word ^ (word >> 30); }

  std::array<uint32_t, 2> words_;
  size_t num_words_;
};

std::mt19937 generator_of(uint64_t seed) {
  PythonSeed state(seed);
  return std::mt19937(state);
}

}  // namespace

PythonRandom::PythonRandom(uint64_t seed) : generator_(generator_of(seed)) {}

double PythonRandom::random() {
  const auto high = static_cast<double>(generator_() >> 5);
  const auto low = static_cast<double>(generator_() >> 6);
  return (high * 0x1p26 + low) * 0x1p-53;
}

uint32_t PythonRandom::randbelow(uint32_t n) {
  const int unused = std::countl_zero(n);
  uint32_t drawn = n;
  while (drawn >= n) drawn = static_cast<uint32_t>(generator_()) >> unused;
  return drawn;
}

std::vector<size_t> PythonRandom::sample(size_t size, size_t k) {
  ST_CHECK(k <= size && size <= UINT32_MAX);
  // Up to this size Python takes the drawn out of a list, above it draws again what it had.
  size_t most = 21;
  if (k > 5) {
    size_t power = 1;
    while (power < 3 * k) power *= 4;
    most += power;
  }
  std::vector<size_t> drawn;
  if (size <= most) {
    std::vector<size_t> left(size);
    std::iota(left.begin(), left.end(), size_t{0});
    while (drawn.size() < k) {
      const uint32_t place = randbelow(static_cast<uint32_t>(left.size()));
      drawn.push_back(left[place]);
      left[place] = left.back();
      left.pop_back();
    }
    return drawn;
  }
  while (drawn.size() < k) {
    const size_t index = randbelow(static_cast<uint32_t>(size));
    if (std::ranges::find(drawn, index) == drawn.end()) drawn.push_back(index);
  }
  return drawn;
}

}  // namespace smalltalk
