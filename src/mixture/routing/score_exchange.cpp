#include "smalltalk/mixture/routing/score_exchange.hpp"

#include <algorithm>

#include "smalltalk/core/assignment/score_codes.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {

namespace {

// Parts begin at multiples of it. A GPU scores so many rows at once: only the last part has a pass
// that must be filled up.
constexpr int64_t kPartGrain = 64;

// The rows of a share that fall into a rank's slice.
std::pair<int64_t, int64_t> overlap(int64_t n, const ScoringShare& share, int rank, int ranks) {
  const auto [share_first, share_last] = share.rows(n);
  const auto [slice_first, slice_last] = part_of_range(n, rank, ranks);
  const int64_t first = std::max(share_first, slice_first);
  return {first, std::max(first, std::min(share_last, slice_last))};
}

// Sends every rank what belongs into its slice; -> what belongs into this rank's: by rank, router
// and row.
std::vector<uint16_t> send_to_slices(int64_t n, const ScoringShare& share,
                                     std::span<const uint16_t> columns,
                                     const HostCollectives& world) {
  const auto [share_first, share_last] = share.rows(n);
  std::vector<uint16_t> to_send;
  to_send.reserve(columns.size());
  std::vector<int64_t> bytes_to;
  for (int rank = 0; rank < world.size; ++rank) {
    const auto [first, last] = overlap(n, share, rank, world.size);
    const size_t before = to_send.size();
    for (int64_t i = 0; i < std::ssize(share.routers); ++i) {
      const auto column = columns.begin() + i * (share_last - share_first);
      to_send.insert(to_send.end(), column + (first - share_first), column + (last - share_first));
    }
    bytes_to.push_back(static_cast<int64_t>((to_send.size() - before) * sizeof(uint16_t)));
  }
  return values_of<uint16_t>(world.all_to_all(std::as_bytes(std::span(to_send)), bytes_to));
}

}  // namespace

std::pair<int64_t, int64_t> ScoringShare::rows(int64_t n) const {
  return part_of_range(n, part, parts, kPartGrain);
}

ScoreSlice exchange_scores(int64_t n, int64_t num_experts, std::span<const ScoringShare> shares,
                           std::span<const float> mine, const HostCollectives& world) {
  const ScoringShare& share = shares[static_cast<size_t>(world.rank)];
  const auto [share_first, share_last] = share.rows(n);
  ST_CHECK(std::ssize(mine) == (share_last - share_first) * std::ssize(share.routers));
  const ScoreCoding coding = find_score_coding(mine, world);
  std::vector<uint16_t> codes(mine.size());
  encode_scores(mine, coding, codes);
  const std::vector<uint16_t> received = send_to_slices(n, share, codes, world);

  const auto [slice_first, slice_last] = part_of_range(n, world.rank, world.size);
  ScoreSlice slice;
  slice.codes.resize(static_cast<size_t>((slice_last - slice_first) * num_experts));
  ST_CHECK(received.size() == slice.codes.size());
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
