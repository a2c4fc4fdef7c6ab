#include "smalltalk/core/assignment/score_matrix.hpp"

#include <limits>
#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

ScoreMatrix::ScoreMatrix(int64_t num_sequences, int64_t num_experts)
    : num_sequences_(num_sequences), num_experts_(num_experts) {
  if (num_experts < 1 || num_experts > std::numeric_limits<uint16_t>::max()) {
    throw Error("a score matrix needs 1 to 65535 experts, not " + std::to_string(num_experts));
  }
  if (num_sequences < 0 || num_sequences > std::numeric_limits<int64_t>::max() / num_experts) {
    throw Error("a score matrix cannot have " + std::to_string(num_sequences) + " sequences");
  }
  values_.resize(static_cast<size_t>(num_sequences * num_experts));
}

std::span<const float> ScoreMatrix::row(int64_t sequence) const {
  ST_CHECK(sequence >= 0 && sequence < num_sequences_);
  return values().subspan(static_cast<size_t>(sequence * num_experts_),
                          static_cast<size_t>(num_experts_));
}

std::span<float> ScoreMatrix::row(int64_t sequence) {
  ST_CHECK(sequence >= 0 && sequence < num_sequences_);
  return values().subspan(static_cast<size_t>(sequence * num_experts_),
                          static_cast<size_t>(num_experts_));
}

LocalScores<float> local_scores(const ScoreMatrix& scores) {
  return {scores.num_experts(), {{0, scores.values()}}};
}

}  // namespace smalltalk
