// The E-step's two halves that need no communication: scoring a part, and joining the parts.
#include <fmt/format.h>

#include <algorithm>

#include "smalltalk/core/error.hpp"
#include "smalltalk/mixture/router_em.hpp"

namespace smalltalk {

namespace {
constexpr int64_t kBlockRows = 64;  // rows of one forward pass: fixed, so that results are
}  // namespace

RouterHosting RouterHosting::alone(int64_t num_experts) {
  RouterHosting hosting;
  for (int e = 0; e < static_cast<int>(num_experts); ++e) hosting.trains.push_back(e);
  hosting.scores = hosting.trains;
  hosting.gather_scores = [scores = hosting.scores, num_experts](int64_t n,
                                                                 std::span<const float> mine) {
    const GatherPiece all{scores, 0, 1};
    return join_scores(n, num_experts, {&all, 1}, mine);
  };
  return hosting;
}

// Parts are whole blocks, so that a block holds the same rows whatever the number of parts.
std::pair<int64_t, int64_t> part_of(int64_t n, int64_t part, int64_t parts) {
  const int64_t blocks = (n + kBlockRows - 1) / kBlockRows;
  return {std::min(n, blocks * part / parts * kBlockRows),
          std::min(n, blocks * (part + 1) / parts * kBlockRows)};
}

ScoreMatrix join_scores(int64_t n, int64_t num_experts, std::span<const GatherPiece> layout,
                        std::span<const float> gathered) {
  ScoreMatrix scores(n, num_experts);
  int64_t filled = 0;
  size_t next = 0;
  for (const GatherPiece& piece : layout) {
    const auto [first, last] = part_of(n, piece.score_part, piece.score_parts);
    for (const int e : piece.scores) {
      for (int64_t i = first; i < last; ++i) {
        ST_CHECK(next < gathered.size());
        scores.row(i)[static_cast<size_t>(e)] = gathered[next++];
      }
      filled += last - first;
    }
  }
  ST_CHECK(next == gathered.size());
  ST_CHECK(filled == n * num_experts);
  return scores;
}

std::vector<float> score_prefixes(const Transformer& router, const TokenFile& tokens,
                                  std::span<const uint64_t> ids, int64_t seq_length,
                                  int64_t prefix_tokens) {
  const auto count = static_cast<int64_t>(ids.size());
  std::vector<float> scores(ids.size());
  std::vector<int64_t> rows(static_cast<size_t>(kBlockRows * prefix_tokens));  // [block, M]
  std::vector<double> sums(static_cast<size_t>(kBlockRows));
  for (int64_t first = 0; first < count; first += kBlockRows) {
    const int64_t n = std::min(kBlockRows, count - first);
    for (int64_t i = 0; i < n; ++i) {
      tokens.read(static_cast<int64_t>(ids[static_cast<size_t>(first + i)]) * seq_length,
                  std::span(rows).subspan(static_cast<size_t>(i * prefix_tokens),
                                          static_cast<size_t>(prefix_tokens)));
    }
    router.log_likelihoods(std::span(rows).first(static_cast<size_t>(n * prefix_tokens)), n,
                           prefix_tokens, prefix_tokens, kBlockRows,
                           std::span(sums).first(static_cast<size_t>(n)), {});
    for (int64_t i = 0; i < n; ++i) {
      scores[static_cast<size_t>(first + i)] = static_cast<float>(sums[static_cast<size_t>(i)]);
    }
  }
  return scores;
}

}  // namespace smalltalk
