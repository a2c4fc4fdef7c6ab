// Scoring, and the part of the E-step that needs no communication: joining what was scored.
#include <algorithm>

#include "smalltalk/core/error.hpp"
#include "smalltalk/data/sampler.hpp"
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

ScoreMatrix score_rows(const Transformer& model, const RowSource& rows, int64_t count,
                       int64_t split) {
  ScoreMatrix scores(count, 2);
  std::vector<int64_t> tokens(static_cast<size_t>(kBlockRows * rows.row_tokens));
  std::vector<double> head(kBlockRows);
  std::vector<double> tail(kBlockRows);
  for (int64_t first = 0; first < count; first += kBlockRows) {
    const auto n = static_cast<size_t>(std::min(kBlockRows, count - first));
    const auto block = std::span(tokens).first(n * static_cast<size_t>(rows.row_tokens));
    rows.read(first, static_cast<int64_t>(n), block);
    model.log_likelihoods(block, static_cast<int64_t>(n), rows.row_tokens, split, kBlockRows,
                          std::span(head).first(n), std::span(tail).first(n));
    for (size_t i = 0; i < n; ++i) {
      scores.row(first + static_cast<int64_t>(i))[0] = static_cast<float>(head[i]);
      scores.row(first + static_cast<int64_t>(i))[1] = static_cast<float>(tail[i]);
    }
  }
  return scores;
}

std::vector<float> score_prefixes(const Transformer& router,
                                  const std::shared_ptr<const TokenFile>& tokens,
                                  std::span<const uint64_t> ids, int64_t seq_length,
                                  int64_t prefix_tokens) {
  if (ids.empty()) return {};  // to ordered_rows() no ids would mean all
  const RowSource rows = ordered_rows(tokens, {ids.begin(), ids.end()}, seq_length, prefix_tokens);
  const ScoreMatrix both =
      score_rows(router, rows, static_cast<int64_t>(ids.size()), prefix_tokens);
  std::vector<float> scores(ids.size());
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = both.row(static_cast<int64_t>(i))[0];
  return scores;
}

}  // namespace smalltalk
