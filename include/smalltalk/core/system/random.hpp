// Random numbers as functions: of (seed, purpose, indices), never of how often a generator was
// called. A run that was killed and resumed therefore draws what the unbroken run would have drawn.
// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace smalltalk {

// Four random words for a counter under a key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A 64-bit key derived from the run's seed, a purpose such as "router init" and up to two indices.
// Different arguments give unrelated keys.
uint64_t derive_seed(uint64_t seed, std::string_view purpose, uint64_t a = 0, uint64_t b = 0);

// 64 random bits as a number in [0, 1).
inline double unit_interval(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

// A permutation of [0, size) computed per index in O(1) memory: a Feistel network on the smallest
// even number of bits that holds size, walked until it falls inside.
class Permutation {
 public:
  // REQUIRES size >= 1 (else Error).
  Permutation(uint64_t size, uint64_t key);
  // REQUIRES index < size (else Error). Distinct indices give distinct results.
  uint64_t operator()(uint64_t index) const;
  uint64_t size() const { return size_; }

 private:
  uint64_t size_;
  uint64_t key_;
  int half_bits_;
};

}  // namespace smalltalk
