// The scores of N sequences under E routers: log-likelihoods of the prefix in nats, higher is
// better, everywhere. Row-major [N, E], float32, or 16-bit codes on the wire (score_codes.hpp).
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

// The rows of consecutive sequences, somewhere in memory: a vector, a mapped file.
template <typename Score>
struct ScoreBlock {
  uint64_t first_sequence = 0;
  std::span<const Score> values;  // [rows, E]
};

// What this process holds of a score matrix that is spread over ranks, in any way. Score is float
// (nats) or uint16_t (codes: a higher code is a higher score).
template <typename Score>
struct LocalScores {
  int64_t num_experts = 0;
  std::vector<ScoreBlock<Score>> blocks;  // ascending, no sequence twice
  double lowest = 0;                      // code 0 stands for this score; nats are
  double step = 1;                        // lowest + step * code. Not used for float.

  int64_t num_rows() const {
    size_t values = 0;
    for (const auto& block : blocks) values += block.values.size();
    return static_cast<int64_t>(values) / num_experts;
  }
};

// All of a matrix as one block. The matrix must outlive it.
LocalScores<float> local_scores(const ScoreMatrix& scores);

}  // namespace smalltalk
