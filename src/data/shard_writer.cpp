#include <algorithm>
#include <numeric>

#include "checksums.hpp"
#include "hdf5_file.hpp"
#include "provenance.hpp"
#include "shard_format.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/provenance.hpp"

namespace smalltalk {
namespace {

constexpr size_t kBufferedSequences = size_t{1} << 20;

void write_rule(Hdf5File& file, const AssignmentRule& rule) {
  file.write_text_attribute("method", to_string(rule.method));
  if (!rule.capacities.empty()) {
    file.write<uint64_t>("capacities",
                         std::vector<uint64_t>(rule.capacities.begin(), rule.capacities.end()));
  }
  if (!rule.prices.empty()) file.write<double>("prices", rule.prices);
  if (rule.closings.empty()) return;
  std::vector<uint16_t> experts;
  std::vector<uint32_t> ranks;
  std::vector<uint64_t> sequences;
  for (const Closing& closing : rule.closings) {
    experts.push_back(closing.expert);
    ranks.push_back(closing.key.rank);
    sequences.push_back(closing.key.sequence);
  }
  file.write<uint16_t>("closing_expert", experts);
  file.write<uint32_t>("closing_rank", ranks);
  file.write<uint64_t>("closing_sequence", sequences);
}

}  // namespace

struct ShardWriter::Impl {
  Hdf5File file;
  std::vector<uint64_t> offsets;
  std::vector<uint64_t> next;  // [E] where each expert's next sequence goes
  std::span<const uint64_t> chunk;
  std::vector<uint16_t> buffer;  // of sequences first, first + 1, ...
  uint64_t first = 0;

  // Sorts what is buffered by expert and appends each expert's part to its place.
  void flush() {
    const size_t num_experts = next.size();
    std::vector<size_t> places(num_experts + 1);
    for (const uint16_t expert : buffer) ++places[size_t{expert} + 1];
    std::partial_sum(places.begin(), places.end(), places.begin());
    std::vector<uint64_t> ids(buffer.size());
    std::vector<size_t> at(places.begin(), places.end() - 1);
    for (size_t i = 0; i < buffer.size(); ++i) {
      ids[at[buffer[i]]++] = chunk.empty() ? first + i : chunk[first + i];
    }
    file.write_at<uint16_t>("expert", static_cast<int64_t>(first), buffer);
    for (size_t e = 0; e < num_experts; ++e) {
      const size_t count = places[e + 1] - places[e];
      ST_CHECK(next[e] + count <= offsets[e + 1]);
      file.write_at<uint64_t>("sequences", static_cast<int64_t>(next[e]),
                              std::span<const uint64_t>(ids).subspan(places[e], count));
      next[e] += count;
    }
    first += buffer.size();
    buffer.clear();
  }
};

ShardWriter::ShardWriter(const std::filesystem::path& path, const std::filesystem::path& shown,
                         std::span<const int64_t> counts, const AssignmentRule& rule,
                         int64_t kept_sequences, std::span<const uint64_t> chunk,
                         const Provenance& provenance)
    : impl_(new Impl{Hdf5File::create(path, shown), {0}, {}, chunk, {}, 0}) {
  ST_CHECK(!counts.empty() && counts.size() <= 65535);
  for (const int64_t count : counts) {
    ST_CHECK(count >= 0);
    impl_->next.push_back(impl_->offsets.back());
    impl_->offsets.push_back(impl_->offsets.back() + static_cast<uint64_t>(count));
  }
  const auto size = static_cast<int64_t>(impl_->offsets.back());
  ST_CHECK(chunk.empty() || static_cast<int64_t>(chunk.size()) == size);
  ST_CHECK(kept_sequences >= 0 && kept_sequences <= size);
  ST_CHECK(rule.capacities.empty() || rule.capacities.size() == counts.size());
  ST_CHECK(rule.prices.empty() || rule.prices.size() == counts.size());
  Hdf5File& file = impl_->file;
  file.write_format(kShardFormat);
  write_provenance(file, provenance);
  file.write_integer_attribute("kept_sequences", kept_sequences);
  write_rule(file, rule);
  file.write<uint64_t>("offsets", impl_->offsets);
  file.create_dataset<uint16_t>("expert", size);
  file.create_dataset<uint64_t>("sequences", size);
  if (!chunk.empty()) file.write<uint64_t>("chunk", chunk);
}

ShardWriter::~ShardWriter() = default;

void ShardWriter::add(std::span<const uint16_t> experts) {
  while (!experts.empty()) {
    const size_t count = std::min(kBufferedSequences - impl_->buffer.size(), experts.size());
    for (const uint16_t expert : experts.first(count)) ST_CHECK(expert < impl_->next.size());
    impl_->buffer.insert(impl_->buffer.end(), experts.begin(),
                         experts.begin() + static_cast<std::ptrdiff_t>(count));
    ST_CHECK(impl_->first + impl_->buffer.size() <= impl_->offsets.back());
    experts = experts.subspan(count);
    if (impl_->buffer.size() == kBufferedSequences) impl_->flush();
  }
}

void ShardWriter::finish() {
  impl_->flush();
  ST_CHECK(impl_->first == impl_->offsets.back());
  const std::vector<uint64_t> checksums = impl_->file.seal("expert");
  impl_->file.write_text_attribute(
      "content_hash",
      shards_content_hash(impl_->offsets, checksums, hash_pieces(std::as_bytes(impl_->chunk))));
  impl_->file.close();
}

void write_shards(const std::filesystem::path& path, const Shards& shards) {
  const std::string problem =
      shards_disagreement({shards.expert, shards.offsets, shards.sequences, shards.chunk});
  if (!problem.empty()) throw Error(path.string() + ": not written: " + problem);
  std::vector<int64_t> counts;
  for (int64_t e = 0; e < shards.num_experts(); ++e) {
    counts.push_back(static_cast<int64_t>(shards.of_expert(e).size()));
  }
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    ShardWriter writer(temporary, path, counts, shards.rule, shards.kept_sequences, shards.chunk,
                       shards.provenance);
    writer.add(shards.expert);
    writer.finish();
  });
}

}  // namespace smalltalk
