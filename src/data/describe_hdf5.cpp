#include <nlohmann/json.hpp>
#include <optional>

#include "hdf5_file.hpp"
#include "mapped_dataset.hpp"
#include "provenance.hpp"
#include "shard_format.hpp"
#include "smalltalk/data/order_file.hpp"
#include "smalltalk/data/prepare.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

using Json = nlohmann::ordered_json;

Json describe_tokens(const std::filesystem::path& path) {
  const TokenFile file(path);
  const TokenFileInfo& info = file.info();
  if (file.hash_of_first(info.num_tokens) != info.content_hash) {
    throw Error(path.string() + ": its tokens do not have the hash that it states; make it again");
  }
  const Domains domains = read_domains(path);
  std::vector<int64_t> documents(domains.names.size());
  for (const uint16_t domain : domains.of_document) ++documents[domain];
  Json of_domains = Json::object();
  for (size_t i = 0; i < documents.size(); ++i) {
    if (i > 0 || documents[i] > 0) of_domains[domains.names[i]] = documents[i];
  }
  Json description = {{"kind", "tokens"},
                      {"num_tokens", info.num_tokens},
                      {"num_documents", info.num_documents},
                      {"vocab_size", info.vocab_size},
                      {"token_bytes", info.token_bytes},
                      {"end_token", info.end_token},
                      {"text_bytes", info.text_bytes},
                      {"packed_length", info.packed_length},
                      {"padding", info.padding},
                      {"documents_by_domain", of_domains}};
  const Hdf5File hdf5 = Hdf5File::open(path);
  if (!hdf5.has_dataset("sources")) return description;  // not made by prepare
  const PrepareReport made = report_of(path);
  description.update(Json{{"files_read", hdf5.read_list("sources").size()},
                          {"files_left_out", made.left_out},
                          {"documents_read", made.bad.documents},
                          {"bad_utf8", made.bad.bad_utf8},
                          {"empty", made.bad.empty},
                          {"broken_json", made.bad.broken_json},
                          {"bent", made.bad.bent}});
  return description;
}

Json describe_rule(const AssignmentRule& rule) {
  Json closings = Json::array();
  for (const Closing& closing : rule.closings) {
    closings.push_back({{"expert", closing.expert},
                        {"rank", closing.key.rank},
                        {"sequence", closing.key.sequence}});
  }
  Json description = {{"method", to_string(rule.method)}};
  if (!rule.capacities.empty()) description["capacities"] = rule.capacities;
  if (!rule.prices.empty()) description["prices"] = rule.prices;
  if (!rule.closings.empty()) description["closings"] = closings;
  return description;
}

// Mapped, so that files of any size can be verified.
Json describe_shards(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  const ShardInfo info = read_shard_info(path);
  const MappedDataset expert(file, "expert");
  const MappedDataset sequences(file, "sequences");
  std::optional<MappedDataset> chunk;
  if (info.has_chunk) chunk.emplace(file, "chunk");
  const int64_t size = info.num_sequences;
  const std::string problem = shards_disagreement(
      {expert.values<uint16_t>(0, size), info.offsets, sequences.values<uint64_t>(0, size),
       chunk ? chunk->values<uint64_t>(0, size) : std::span<const uint64_t>{}});
  if (!problem.empty()) throw Error(path.string() + ": " + problem + "; make it again");
  Json description = {{"kind", info.has_chunk ? "round" : "shards"},
                      {"num_sequences", info.num_sequences},
                      {"num_experts", info.num_experts()},
                      {"sequences_by_expert", info.sizes()},
                      {"kept_sequences", info.kept_sequences}};
  description.update(describe_rule(info.rule));
  return description;
}

Json describe_scores(const std::filesystem::path& path) {
  const ScoreFile scores(path);
  scores.rows(0, scores.num_sequences());  // verifies them
  return {{"kind", "scores"},
          {"num_sequences", scores.num_sequences()},
          {"num_experts", scores.num_experts()}};
}

Json describe_score_block(const Hdf5File& file) {
  file.read<float>("scores");  // verifies them
  return {{"kind", "score block"},
          {"first_sequence", file.integer_attribute("first_sequence")},
          {"shape", file.shape("scores")}};
}

Json describe_block_hashes(const Hdf5File& file) {
  return {{"kind", "block hashes"},
          {"seq_length", file.integer_attribute("seq_length")},
          {"block_sequences", file.integer_attribute("block_sequences")},
          {"blocks", file.read<uint64_t>("blocks").size()}};
}

Json describe_order(const std::filesystem::path& path) {
  return {{"kind", "order"}, {"num_documents", read_order(path).documents.size()}};
}

}  // namespace

std::string describe_hdf5(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  const std::string format = file.format();
  Json description;
  if (format == kTokenFormat) {
    description = describe_tokens(path);
  } else if (format == kShardFormat) {
    description = describe_shards(path);
  } else if (format == kScoreFormat || (format.empty() && file.has_dataset("scores"))) {
    description = describe_scores(path);
  } else if (format == kScoreBlockFormat) {
    description = describe_score_block(file);
  } else if (format == kBlockHashFormat) {
    description = describe_block_hashes(file);
  } else if (format == kOrderFormat) {
    description = describe_order(path);
  } else {
    throw Error(path.string() + ": not a token, shard, score or order file of this suite");
  }
  if (file.has_attribute("version")) description["version"] = file.integer_attribute("version");
  Json attributes = Json::object();
  for (const auto& [name, value] : file.text_attributes()) attributes[name] = value;
  description["attributes"] = attributes;
  return description.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace smalltalk
