#include "smalltalk/mixture/routing/score_exchange.hpp"

#include <algorithm>

#include "smalltalk/core/assignment/score_codes.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

namespace {

// Parts begin at multiples of it. A GPU scores so many rows at once: only the last part has a pass
// that must be filled up.
constexpr int64_t kPartGrain = 64;

// The rows that a rank assigns.
std::pair<int64_t, int64_t> slice_of(int64_t n, int64_t rank, int64_t ranks) {
  return {n * rank / ranks, n * (rank + 1) / ranks};
}

// The rows of a share that fall into a rank's slice.
std::pair<int64_t, int64_t> overlap(int64_t n, const ScoringShare& share, int64_t rank,
                                    int64_t ranks) {
  const auto [part_first, part_last] = share.rows(n);
  const auto [first, last] = slice_of(n, rank, ranks);
  return {std::max(first, part_first),
          std::max(std::max(first, part_first), std::min(last, part_last))};
}

}  // namespace

std::pair<int64_t, int64_t> ScoringShare::rows(int64_t n) const {
  const int64_t grains = (n + kPartGrain - 1) / kPartGrain;
  return {std::min(n, grains * part / parts * kPartGrain),
          std::min(n, grains * (part + 1) / parts * kPartGrain)};
}

ScoreSlice exchange_scores(int64_t n, int64_t num_experts, std::span<const ScoringShare> shares,
                           std::span<const float> mine, const HostCollectives& world) {
  const ScoringShare& share = shares[static_cast<size_t>(world.rank)];
  const auto [part_first, part_last] = share.rows(n);
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

}  // namespace smalltalk
