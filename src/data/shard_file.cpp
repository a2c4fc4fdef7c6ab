#include "smalltalk/data/shard_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>

#include "hdf5_file.hpp"
#include "shard_format.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/provenance.hpp"

namespace smalltalk {
namespace {

constexpr std::array kMethods = {AssignmentMethod::greedy, AssignmentMethod::margin,
                                 AssignmentMethod::optimal, AssignmentMethod::argmax,
                                 AssignmentMethod::random};

uint64_t id_of(std::span<const uint64_t> chunk, size_t i) {
  return chunk.empty() ? static_cast<uint64_t>(i) : chunk[i];
}

void require(bool good, const Hdf5File& file, const std::string& problem) {
  if (!good) throw Error(file.path().string() + ": " + problem + "; make it again");
}

AssignmentRule read_rule(const Hdf5File& file, size_t num_experts) {
  AssignmentRule rule;
  const std::string method = file.text_attribute("method");
  const auto known = std::find_if(kMethods.begin(), kMethods.end(), [&](AssignmentMethod other) {
    return to_string(other) == method;
  });
  require(known != kMethods.end(), file, "its method '" + method + "' is unknown");
  rule.method = *known;
  if (file.has_dataset("capacities")) {
    const std::vector<uint64_t> capacities = file.read<uint64_t>("capacities");
    rule.capacities.assign(capacities.begin(), capacities.end());
    require(capacities.size() == num_experts &&
                std::all_of(rule.capacities.begin(), rule.capacities.end(),
                            [](int64_t capacity) { return capacity >= 0; }),
            file, "/capacities is not one of each expert");
  }
  if (file.has_dataset("prices")) {
    rule.prices = file.read<double>("prices");
    require(rule.prices.size() == num_experts, file, "/prices is not one of each expert");
  }
  if (file.has_dataset("closing_expert")) {
    const auto experts = file.read<uint16_t>("closing_expert");
    const auto ranks = file.read<uint32_t>("closing_rank");
    const auto sequences = file.read<uint64_t>("closing_sequence");
    require(ranks.size() == experts.size() && sequences.size() == experts.size() &&
                std::all_of(experts.begin(), experts.end(),
                            [&](uint16_t expert) { return expert < num_experts; }),
            file, "its closing table is none");
    for (size_t i = 0; i < experts.size(); ++i) {
      rule.closings.push_back({experts[i], {ranks[i], sequences[i]}});
    }
  }
  return rule;
}

ShardInfo read_info(const Hdf5File& file) {
  file.require_format(kShardFormat);
  ShardInfo info;
  info.offsets = file.read<uint64_t>("offsets");
  require(info.offsets.size() >= 2 && info.offsets.size() <= 65536, file,
          "its /offsets are no offsets");
  info.has_chunk = file.has_dataset("chunk");
  const std::vector<int64_t> shape = file.shape("expert");
  require(shape.size() == 1, file, "/expert is not a list");
  info.num_sequences = shape[0];
  require(info.offsets.front() == 0 && static_cast<int64_t>(info.offsets.back()) == shape[0] &&
              std::is_sorted(info.offsets.begin(), info.offsets.end()),
          file, "its /offsets do not cover the sequences");
  require(file.shape("sequences") == shape, file, "/expert and /sequences differ in size");
  require(!info.has_chunk || file.shape("chunk") == shape, file,
          "/expert and /chunk differ in size");
  require(file.has_type<uint16_t>("expert") && file.has_type<uint64_t>("sequences") &&
              (!info.has_chunk || file.has_type<uint64_t>("chunk")),
          file, "its datasets do not have the types of a shard file");
  info.rule = read_rule(file, info.offsets.size() - 1);
  info.kept_sequences = file.integer_attribute("kept_sequences");
  require(info.kept_sequences >= 0 && info.kept_sequences <= info.num_sequences, file,
          "its kept_sequences are more than it holds");
  info.content_hash = file.text_attribute("content_hash");
  require(info.content_hash == shards_content_hash(info.offsets, file.checksums("expert"),
                                                   info.has_chunk ? file.checksums("chunk")
                                                                  : std::vector<uint64_t>{}),
          file, "it does not have the content_hash that it states");
  info.provenance = file.text_attributes();
  info.provenance.erase("method");
  info.provenance.erase("content_hash");
  return info;
}

[[noreturn]] void no_such_shard(int64_t expert, int64_t num_experts) {
  throw Error(fmt::format("shard {} asked for, of {}", expert, num_experts));
}

}  // namespace

std::string shards_content_hash(std::span<const uint64_t> offsets,
                                std::span<const uint64_t> expert_checksums,
                                std::span<const uint64_t> chunk_checksums) {
  std::vector<uint64_t> words = {offsets.back()};
  words.insert(words.end(), offsets.begin(), offsets.end());
  words.insert(words.end(), expert_checksums.begin(), expert_checksums.end());
  words.insert(words.end(), chunk_checksums.begin(), chunk_checksums.end());
  return hash_bytes(std::as_bytes(std::span(words)));
}

std::string shards_disagreement(const ShardView& shards) {
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
    const uint64_t id = id_of(shards.chunk, i);
    if (i > 0 && id <= id_of(shards.chunk, i - 1)) return "/chunk does not ascend";
    const size_t expert = shards.expert[i];
    if (expert >= next.size()) return fmt::format("/expert[{}] is {}", i, expert);
    if (next[expert] == shards.offsets[expert + 1] || shards.sequences[next[expert]] != id) {
      return fmt::format("/sequences and /expert disagree on sequence {}", id);
    }
    ++next[expert];
  }
  return {};
}

std::vector<int64_t> ShardInfo::sizes() const {
  std::vector<int64_t> sizes;
  for (int64_t e = 0; e < num_experts(); ++e) sizes.push_back(size_of(e));
  return sizes;
}

int64_t ShardInfo::size_of(int64_t expert) const {
  if (expert < 0 || expert >= num_experts()) no_such_shard(expert, num_experts());
  const auto e = static_cast<size_t>(expert);
  return static_cast<int64_t>(offsets[e + 1] - offsets[e]);
}

std::span<const uint64_t> Shards::of_expert(int64_t index) const {
  if (index < 0 || index >= num_experts()) no_such_shard(index, num_experts());
  const auto e = static_cast<size_t>(index);
  return std::span(sequences).subspan(offsets[e], offsets[e + 1] - offsets[e]);
}

Shards make_shards(std::span<const uint16_t> assignment, int64_t num_experts,
                   std::span<const uint64_t> chunk, Provenance provenance, AssignmentRule rule,
                   int64_t kept_sequences) {
  ST_CHECK(num_experts >= 1 && num_experts <= 65535);
  ST_CHECK(chunk.empty() || chunk.size() == assignment.size());
  Shards shards;
  shards.expert.assign(assignment.begin(), assignment.end());
  shards.chunk.assign(chunk.begin(), chunk.end());
  shards.provenance = std::move(provenance);
  shards.rule = std::move(rule);
  shards.kept_sequences = kept_sequences;
  shards.offsets.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (const uint16_t owner : assignment) {
    ST_CHECK(owner < num_experts);
    ++shards.offsets[size_t{owner} + 1];
  }
  for (size_t e = 1; e < shards.offsets.size(); ++e) shards.offsets[e] += shards.offsets[e - 1];
  std::vector<uint64_t> next(shards.offsets.begin(), shards.offsets.end() - 1);
  shards.sequences.resize(assignment.size());
  for (size_t i = 0; i < assignment.size(); ++i) {
    shards.sequences[next[assignment[i]]++] = id_of(chunk, i);
  }
  const std::string problem =
      shards_disagreement({shards.expert, shards.offsets, shards.sequences, shards.chunk});
  if (!problem.empty()) throw Error("shards: " + problem);
  return shards;
}

ShardInfo read_shard_info(const std::filesystem::path& path) {
  return read_info(Hdf5File::open(path));
}

uint16_t read_expert(const std::filesystem::path& path, int64_t sequence) {
  const Hdf5File file = Hdf5File::open(path);
  const ShardInfo info = read_info(file);
  require(sequence >= 0 && sequence < info.num_sequences, file,
          fmt::format("there is no sequence {}, it holds {}", sequence, info.num_sequences));
  uint16_t expert = 0;
  file.read_slice<uint16_t>("expert", sequence, {&expert, 1});
  return expert;
}

std::vector<uint64_t> read_shard(const std::filesystem::path& path, int64_t expert) {
  const Hdf5File file = Hdf5File::open(path);
  const ShardInfo info = read_info(file);
  std::vector<uint64_t> sequences(static_cast<size_t>(info.size_of(expert)));
  file.read_slice<uint64_t>(
      "sequences", static_cast<int64_t>(info.offsets[static_cast<size_t>(expert)]), sequences);
  const bool ascends = std::adjacent_find(sequences.begin(), sequences.end(),
                                          std::greater_equal<>()) == sequences.end();
  require(ascends, file, fmt::format("the sequences of expert {} do not ascend", expert));
  return sequences;
}

Shards read_shards(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  ShardInfo info = read_info(file);
  Shards shards;
  shards.expert = file.read<uint16_t>("expert");
  shards.offsets = std::move(info.offsets);
  shards.sequences = file.read<uint64_t>("sequences");
  if (info.has_chunk) shards.chunk = file.read<uint64_t>("chunk");
  shards.provenance = std::move(info.provenance);
  shards.rule = std::move(info.rule);
  shards.kept_sequences = info.kept_sequences;
  const std::string problem =
      shards_disagreement({shards.expert, shards.offsets, shards.sequences, shards.chunk});
  require(problem.empty(), file, problem);
  return shards;
}

}  // namespace smalltalk
