#include "smalltalk/core/system/random.hpp"

#include <algorithm>
#include <bit>
#include <string>

#include "core/system/xxh3.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

// Constants of Philox4x32: two odd multipliers, two Weyl increments of the key.
constexpr uint32_t kMultiplier0 = 0xD2511F53;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9;
constexpr uint32_t kWeyl1 = 0xBB67AE85;
constexpr int kPhiloxRounds = 10;

uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

// Four rounds make a pseudo-random permutation in theory; more, because halves can be one bit wide.
constexpr uint64_t kFeistelRounds = 8;
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

// The finaliser of SplitMix64, a bijection that flips each output bit with probability one half.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter[2];
    counter = {high(product1) ^ counter[1] ^ key[0], low(product1),
               high(product0) ^ counter[3] ^ key[1], low(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

uint64_t derive_seed(uint64_t seed, std::string_view purpose, uint64_t a, uint64_t b) {
  // Philox is a bijection of (a, b) under each key, so only the cut to 64 bits can collide.
  const uint64_t key = XXH3_64bits_withSeed(purpose.data(), purpose.size(), seed);
  const auto words = philox4x32({low(a), high(a), low(b), high(b)}, {low(key), high(key)});
  return uint64_t{words[1]} << 32 | words[0];
}

Permutation::Permutation(uint64_t size, uint64_t key) : size_(size), key_(mix(key + kGolden)) {
  if (size == 0) throw Error("a permutation needs at least one element");
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size - 1)) + 1) / 2);
}

uint64_t Permutation::operator()(uint64_t index) const {
  if (index >= size_) {
    throw Error("index " + std::to_string(index) + " is outside a permutation of " +
                std::to_string(size_));
  }
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  // The network permutes a power of four that holds size_; walking along its cycle from inside
  // must come back inside, after less than four steps on average.
  do {
    uint64_t left = index >> half_bits_;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < kFeistelRounds; ++round) {
      // The top bits: the multiplications of mix() leave them the best mixed.
      const uint64_t f = mix(right ^ mix(key_ + round * kGolden)) >> (64 - half_bits_);
      const uint64_t next = left ^ f;
      left = right;
      right = next;
    }
    index = left << half_bits_ | right;
  } while (index >= size_);
  return index;
}

}  // namespace smalltalk
