// N sequences, E experts.
#include "smalltalk/core/balanced_assignment.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "smalltalk/core/error.hpp"

namespace smalltalk {
namespace {

// Index of the best finite score of a row, ties by expert.
size_t best_expert(std::span<const float> row, int64_t sequence) {
  size_t best = 0;
  for (size_t expert = 0; expert < row.size(); ++expert) {
    if (!std::isfinite(row[expert])) {
      throw Error("the score of sequence " + std::to_string(sequence) + " under expert " +
                  std::to_string(expert) + " is " + std::to_string(row[expert]) +
                  "; scores must be finite (has a router diverged?)");
    }
    if (row[expert] > row[best]) best = expert;
  }
  return best;
}

// Smaller for higher scores; equal for +0 and -0. A float's bits order like its magnitude, so
// flipping them by sign makes them order like the float.
uint32_t descending_key(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score == 0.0F ? 0.0F : score);
  const bool negative = (bits >> 31) != 0;
  return negative ? bits : ~(bits | 0x80000000U);
}

// All sequences by best score, highest first, ties by sequence. One 64-bit word per sequence, so
// that the sort compares integers and touches no score.
std::vector<uint64_t> sorted_sequences(const ScoreMatrix& scores) {
  std::vector<uint64_t> order(static_cast<size_t>(scores.num_sequences()));
  for (int64_t sequence = 0; sequence < scores.num_sequences(); ++sequence) {
    const auto row = scores.row(sequence);
    const uint64_t key = descending_key(row[best_expert(row, sequence)]);
    order[static_cast<size_t>(sequence)] = key << 32 | static_cast<uint64_t>(sequence);
  }
  std::sort(order.begin(), order.end());
  for (uint64_t& word : order) word &= 0xFFFFFFFFU;
  return order;
}

}  // namespace

std::vector<int64_t> balanced_capacities(int64_t num_sequences, int64_t num_experts) {
  if (num_experts < 1 || num_experts > std::numeric_limits<uint16_t>::max()) {
    throw Error("there must be 1 to 65535 experts, not " + std::to_string(num_experts));
  }
  if (num_sequences < 0) throw Error("a number of sequences cannot be negative");
  std::vector<int64_t> capacities(static_cast<size_t>(num_experts), num_sequences / num_experts);
  for (int64_t expert = 0; expert < num_sequences % num_experts; ++expert) {
    ++capacities[static_cast<size_t>(expert)];
  }
  return capacities;
}

Assignment balanced_assignment(const ScoreMatrix& scores) {
  const int64_t num_sequences = scores.num_sequences();
  std::vector<int64_t> room = balanced_capacities(num_sequences, scores.num_experts());
  if (num_sequences < scores.num_experts()) {
    throw Error(std::to_string(num_sequences) + " sequences cannot be shared among " +
                std::to_string(scores.num_experts()) +
                " experts: each needs at least one; score more sequences or use fewer experts");
  }
  if (num_sequences > int64_t{1} << 32) {
    throw Error("at most 2^32 sequences can be assigned at once; assign them chunk by chunk");
  }
  Assignment assignment(static_cast<size_t>(num_sequences));
  for (const uint64_t sequence : sorted_sequences(scores)) {
    const auto row = scores.row(static_cast<int64_t>(sequence));
    size_t choice = row.size();
    for (size_t expert = 0; expert < row.size(); ++expert) {
      if (room[expert] == 0) continue;
      if (choice == row.size() || row[expert] > row[choice]) choice = expert;
    }
    ST_CHECK(choice < row.size());  // capacities sum to N
    --room[choice];
    assignment[sequence] = static_cast<uint16_t>(choice);
  }
  return assignment;
}

Assignment argmax_assignment(const ScoreMatrix& scores) {
  Assignment assignment(static_cast<size_t>(scores.num_sequences()));
  for (int64_t sequence = 0; sequence < scores.num_sequences(); ++sequence) {
    assignment[static_cast<size_t>(sequence)] =
        static_cast<uint16_t>(best_expert(scores.row(sequence), sequence));
  }
  return assignment;
}

}  // namespace smalltalk
