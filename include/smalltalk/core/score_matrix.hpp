// The scores of N sequences under E routers: log-likelihoods of the prefix in nats, higher is
// better, everywhere. Row-major [N, E] float32.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace smalltalk {

class ScoreMatrix {
 public:
  ScoreMatrix() = default;
  // All zero. REQUIRES num_sequences >= 0, 1 <= num_experts <= 65535 (else Error).
  ScoreMatrix(int64_t num_sequences, int64_t num_experts);

  int64_t num_sequences() const { return num_sequences_; }
  int64_t num_experts() const { return num_experts_; }
  std::span<const float> row(int64_t sequence) const;        // [E]
  std::span<float> row(int64_t sequence);                    // [E]
  std::span<const float> values() const { return values_; }  // [N * E]
  std::span<float> values() { return values_; }

 private:
  int64_t num_sequences_ = 0;
  int64_t num_experts_ = 0;
  std::vector<float> values_;
};

}  // namespace smalltalk
