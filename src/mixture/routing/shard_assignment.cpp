#include "smalltalk/mixture/routing/shard_assignment.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/provenance.hpp"

namespace smalltalk {

namespace {

constexpr int64_t kPieceRows = int64_t{1} << 22;  // on their way to the writer

// Hands the experts of all ranks' sequences, in rank order, to rank 0's `take`, which the others
// call with nothing. Collective.
void pass_to_writer(std::span<const uint16_t> mine, const HostCollectives& world,
                    const std::function<void(const Assignment&)>& take) {
  const auto size = static_cast<int64_t>(mine.size());
  const std::vector<int64_t> sizes = gather_values<int64_t>({&size, 1}, world);
  const auto my_place = sizes.begin() + world.rank;
  const int64_t my_first = std::accumulate(sizes.begin(), my_place, int64_t{0});
  const int64_t rows = std::accumulate(my_place, sizes.end(), my_first);
  // A piece comes from the one or more ranks that hold its rows.
  for (int64_t first = 0; first < rows; first += kPieceRows) {
    const auto place_in_mine = [&](int64_t row) {
      return static_cast<size_t>(std::clamp<int64_t>(row - my_first, 0, size));
    };
    const size_t begin = place_in_mine(first);
    const auto piece = mine.subspan(begin, place_in_mine(first + kPieceRows) - begin);
    take(values_of<uint16_t>(world.gather_bytes(std::as_bytes(piece), 0)));
  }
}

}  // namespace

KeptSequences keep_none(int64_t num_experts) {
  return {{}, {}, 0, std::vector<int64_t>(static_cast<size_t>(num_experts), 0)};
}

KeptSequences keep_sequences(const std::filesystem::path& shards) {
  const ShardInfo info = read_shard_info(shards);
  return {shards, info.content_hash, info.num_sequences, info.sizes()};
}

std::vector<int64_t> shard_sizes(const KeptSequences& kept, const AssignmentOutcome& outcome) {
  std::vector<int64_t> sizes = outcome.stats.assigned_counts;
  std::transform(sizes.begin(), sizes.end(), kept.by_expert.begin(), sizes.begin(), std::plus());
  return sizes;
}

std::string request_of(const std::filesystem::path& shards) {
  return std::filesystem::exists(shards) ? read_shard_info(shards).provenance["request"] : "";
}

void write_assignment(const std::filesystem::path& path, const KeptSequences& kept,
                      const AssignmentOutcome& outcome, const HostCollectives& world,
                      const Provenance& provenance) {
  if (world.rank != 0) {
    pass_to_writer(outcome.expert, world, [](const Assignment&) {});
    return;
  }
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    ShardWriter writer(temporary, path, shard_sizes(kept, outcome), outcome.rule, kept.count, {},
                       provenance);
    if (kept.count > 0) writer.add(read_shards(kept.shards).expert);
    pass_to_writer(outcome.expert, world, [&](const Assignment& piece) { writer.add(piece); });
    writer.finish();
  });
}

}  // namespace smalltalk
