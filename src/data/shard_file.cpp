#include "smalltalk/data/shard_file.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "hdf5_file.hpp"
#include "provenance.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/core/run_folder.hpp"

namespace smalltalk {
namespace {

uint64_t id_of(const Shards& shards, size_t i) {
  return shards.chunk.empty() ? static_cast<uint64_t>(i) : shards.chunk[i];
}

// The three datasets say the same thing twice; a file in which they differ was damaged or edited.
std::string disagreement(const Shards& shards) {
  const uint64_t size = shards.expert.size();
  if (shards.offsets.size() < 2 || shards.offsets.size() > 65536)
    return "its /offsets are no offsets";
  if (shards.offsets.front() != 0 || shards.offsets.back() != size ||
      !std::is_sorted(shards.offsets.begin(), shards.offsets.end())) {
    return "its /offsets do not cover the sequences";
  }
  if (shards.sequences.size() != size) return "/expert and /sequences differ in size";
  if (!shards.chunk.empty() && shards.chunk.size() != size)
    return "/expert and /chunk differ in size";
  std::vector<uint64_t> next(shards.offsets.begin(), shards.offsets.end() - 1);
  for (size_t i = 0; i < size; ++i) {
    if (i > 0 && id_of(shards, i) <= id_of(shards, i - 1)) return "/chunk does not ascend";
    const size_t expert = shards.expert[i];
    if (expert >= next.size()) return fmt::format("/expert[{}] is {}", i, expert);
    if (next[expert] == shards.offsets[expert + 1] ||
        shards.sequences[next[expert]] != id_of(shards, i)) {
      return fmt::format("/sequences and /expert disagree on sequence {}", id_of(shards, i));
    }
    ++next[expert];
  }
  return {};
}

}  // namespace

std::span<const uint64_t> Shards::of_expert(int64_t index) const {
  if (index < 0 || index >= num_experts()) {
    throw Error(fmt::format("shard {} asked for, of {}", index, num_experts()));
  }
  const auto e = static_cast<size_t>(index);
  return std::span(sequences).subspan(offsets[e], offsets[e + 1] - offsets[e]);
}

Shards make_shards(std::span<const uint16_t> assignment, int64_t num_experts,
                   std::span<const uint64_t> chunk, Provenance provenance) {
  ST_CHECK(num_experts >= 1 && num_experts <= 65535);
  ST_CHECK(chunk.empty() || chunk.size() == assignment.size());
  Shards shards;
  shards.expert.assign(assignment.begin(), assignment.end());
  shards.chunk.assign(chunk.begin(), chunk.end());
  shards.provenance = std::move(provenance);
  shards.offsets.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (const uint16_t owner : assignment) {
    ST_CHECK(owner < num_experts);
    ++shards.offsets[size_t{owner} + 1];
  }
  for (size_t e = 1; e < shards.offsets.size(); ++e) shards.offsets[e] += shards.offsets[e - 1];
  std::vector<uint64_t> next(shards.offsets.begin(), shards.offsets.end() - 1);
  shards.sequences.resize(assignment.size());
  for (size_t i = 0; i < assignment.size(); ++i) {
    shards.sequences[next[assignment[i]]++] = id_of(shards, i);
  }
  const std::string problem = disagreement(shards);
  if (!problem.empty()) throw Error("shards: " + problem);
  return shards;
}

void write_shards(const std::filesystem::path& path, const Shards& shards) {
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    Hdf5File file = Hdf5File::create(temporary, path);
    file.write_format(kShardFormat);
    write_provenance(file, shards.provenance);
    file.write<uint16_t>("expert", shards.expert);
    file.write<uint64_t>("offsets", shards.offsets);
    file.write<uint64_t>("sequences", shards.sequences);
    if (!shards.chunk.empty()) file.write<uint64_t>("chunk", shards.chunk);
    file.close();
  });
}

Shards read_shards(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  file.require_format(kShardFormat);
  Shards shards;
  shards.expert = file.read<uint16_t>("expert");
  shards.offsets = file.read<uint64_t>("offsets");
  shards.sequences = file.read<uint64_t>("sequences");
  if (file.has_dataset("chunk")) shards.chunk = file.read<uint64_t>("chunk");
  shards.provenance = file.text_attributes();
  const std::string problem = disagreement(shards);
  if (!problem.empty()) throw Error(path.string() + ": " + problem + "; make it again");
  return shards;
}

}  // namespace smalltalk
