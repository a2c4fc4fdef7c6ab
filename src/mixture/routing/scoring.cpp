// Scoring, and the exchange of scores between ranks.
#include <algorithm>

#include "mixture/routing/scoring_notes.hpp"
#include "smalltalk/core/assignment/score_codes.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/mixture/routing/router_em.hpp"

namespace smalltalk {

namespace {

constexpr int64_t kBlockRows = 64;  // rows of one forward pass: fixed, so that results are

// The rows that a rank assigns.
std::pair<int64_t, int64_t> slice_of(int64_t n, int64_t rank, int64_t ranks) {
  return {n * rank / ranks, n * (rank + 1) / ranks};
}

// The rows of a share that fall into a rank's slice.
std::pair<int64_t, int64_t> overlap(int64_t n, const ScoringShare& share, int64_t rank,
                                    int64_t ranks) {
  const auto [part_first, part_last] = part_of(n, share.part, share.parts);
  const auto [first, last] = slice_of(n, rank, ranks);
  return {std::max(first, part_first),
          std::max(std::max(first, part_first), std::min(last, part_last))};
}

}  // namespace

RouterHosting RouterHosting::alone(int64_t num_experts) {
  RouterHosting hosting;
  for (int e = 0; e < static_cast<int>(num_experts); ++e) hosting.trains.push_back(e);
  hosting.shares = {{hosting.trains, 0, 1}};
  return hosting;
}

// Parts are whole blocks, so that a block holds the same rows whatever the number of parts.
std::pair<int64_t, int64_t> part_of(int64_t n, int64_t part, int64_t parts) {
  const int64_t blocks = (n + kBlockRows - 1) / kBlockRows;
  return {std::min(n, blocks * part / parts * kBlockRows),
          std::min(n, blocks * (part + 1) / parts * kBlockRows)};
}

ScoreSlice turn_scores(int64_t n, int64_t num_experts, std::span<const ScoringShare> shares,
                       std::span<const float> mine, const HostCollectives& world) {
  const ScoringShare& share = shares[static_cast<size_t>(world.rank)];
  const auto [part_first, part_last] = part_of(n, share.part, share.parts);
  const int64_t part_rows = part_last - part_first;
  ST_CHECK(static_cast<int64_t>(mine.size()) ==
           part_rows * static_cast<int64_t>(share.routers.size()));

  const ScoreCoding coding = find_score_coding(mine, world);
  std::vector<uint16_t> codes(mine.size());
  encode_scores(mine, coding, codes);
  std::vector<uint16_t> to_send;
  to_send.reserve(codes.size());
  std::vector<int64_t> bytes_to;
  for (int rank = 0; rank < world.size; ++rank) {
    const auto [first, last] = overlap(n, share, rank, world.size);
    for (size_t i = 0; i < share.routers.size(); ++i) {
      const auto column = codes.begin() + static_cast<int64_t>(i) * part_rows - part_first;
      to_send.insert(to_send.end(), column + first, column + last);
    }
    bytes_to.push_back((last - first) * static_cast<int64_t>(share.routers.size()) * 2);
  }
  const auto received =
      values_of<uint16_t>(world.all_to_all(std::as_bytes(std::span(to_send)), bytes_to));

  const auto [slice_first, slice_last] = slice_of(n, world.rank, world.size);
  const auto rows = static_cast<size_t>(slice_last - slice_first);
  ST_CHECK(received.size() == rows * static_cast<size_t>(num_experts));
  ScoreSlice slice;
  slice.codes.resize(rows * static_cast<size_t>(num_experts));
  auto next = received.begin();
  for (const ScoringShare& source : shares) {
    const auto [first, last] = overlap(n, source, world.rank, world.size);
    for (const int router : source.routers) {
      for (int64_t row = first; row < last; ++row) {
        slice.codes[static_cast<size_t>((row - slice_first) * num_experts + router)] = *next++;
      }
    }
  }
  slice.scores = {
      num_experts, {{static_cast<uint64_t>(slice_first), slice.codes}}, coding.lowest, coding.step};
  return slice;
}

Assignment join_slices(std::span<const uint16_t> mine, const HostCollectives& world) {
  return gather_values(mine, world);
}

namespace {

// [R, count * P] of a transformer or a stack of R.
template <typename Models>
std::vector<double> score_in_blocks(const Models& models, int64_t num_models, const RowSource& rows,
                                    int64_t count, std::span<const int64_t> prefixes,
                                    ScoringNotes* notes) {
  const int64_t width = std::ssize(prefixes);
  std::vector<double> scores(static_cast<size_t>(num_models * count * width));
  std::vector<double> part(static_cast<size_t>(num_models * kBlockRows * width));
  std::vector<int64_t> tokens(static_cast<size_t>(kBlockRows * rows.row_tokens));
  int64_t first = notes != nullptr ? notes->read(num_models, count, width, scores) : 0;
  for (; first < count; first += kBlockRows) {
    const int64_t n = std::min(kBlockRows, count - first);
    const auto block = std::span(tokens).first(static_cast<size_t>(n * rows.row_tokens));
    const auto out = std::span(part).first(static_cast<size_t>(num_models * n * width));
    rows.read(first, n, block);
    models.log_likelihoods(block, n, rows.row_tokens, prefixes, kBlockRows, out);
    for (int64_t model = 0; model < num_models; ++model) {
      std::copy_n(out.begin() + model * n * width, n * width,
                  scores.begin() + (model * count + first) * width);
    }
    const int64_t done = first + n;
    const bool stop = stop_requested() && done < count;
    if (notes != nullptr && (stop || notes->due())) {
      notes->write(num_models, count, width, done, scores);
    }
    if (stop) throw Stopped();
  }
  return scores;
}

template <typename Models>
std::vector<float> score_prefixes_of(const Models& models, int64_t num_models,
                                     const std::shared_ptr<const TokenFile>& tokens,
                                     std::span<const uint64_t> ids, int64_t seq_length,
                                     std::span<const int64_t> prefixes, ScoringNotes* notes) {
  if (ids.empty()) return {};  // to ordered_rows() no ids would mean all
  const RowSource rows =
      ordered_rows(tokens, {ids.begin(), ids.end()}, seq_length, prefixes.back());
  const std::vector<double> scores =
      score_in_blocks(models, num_models, rows, std::ssize(ids), prefixes, notes);
  return {scores.begin(), scores.end()};
}

}  // namespace

std::vector<double> score_rows(const Transformer& model, const RowSource& rows, int64_t count,
                               std::span<const int64_t> prefixes, ScoringNotes* notes) {
  return score_in_blocks(model, 1, rows, count, prefixes, notes);
}

std::vector<float> score_prefixes(const Transformer& router,
                                  const std::shared_ptr<const TokenFile>& tokens,
                                  std::span<const uint64_t> ids, int64_t seq_length,
                                  std::span<const int64_t> prefixes, ScoringNotes* notes) {
  return score_prefixes_of(router, 1, tokens, ids, seq_length, prefixes, notes);
}

std::vector<float> score_prefixes(const TransformerStack& routers,
                                  const std::shared_ptr<const TokenFile>& tokens,
                                  std::span<const uint64_t> ids, int64_t seq_length,
                                  std::span<const int64_t> prefixes, ScoringNotes* notes) {
  return score_prefixes_of(routers, routers.size(), tokens, ids, seq_length, prefixes, notes);
}

}  // namespace smalltalk
