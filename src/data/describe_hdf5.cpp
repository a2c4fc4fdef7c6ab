#include <nlohmann/json.hpp>

#include "hdf5_file.hpp"
#include "provenance.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

using Json = nlohmann::ordered_json;

Json describe_tokens(const std::filesystem::path& path) {
  const TokenFileInfo info = TokenFile(path).info();
  const Domains domains = read_domains(path);
  std::vector<int64_t> documents(domains.names.size());
  for (const uint16_t domain : domains.of_document) ++documents[domain];
  Json of_domains = Json::object();
  for (size_t i = 0; i < documents.size(); ++i) {
    if (i > 0 || documents[i] > 0) of_domains[domains.names[i]] = documents[i];
  }
  return {{"kind", "tokens"},
          {"num_tokens", info.num_tokens},
          {"num_documents", info.num_documents},
          {"vocab_size", info.vocab_size},
          {"token_bytes", info.token_bytes},
          {"end_token", info.end_token},
          {"text_bytes", info.text_bytes},
          {"documents_by_domain", of_domains}};
}

Json describe_shards(const std::filesystem::path& path) {
  const Shards shards = read_shards(path);
  Json sequences = Json::array();
  for (int64_t e = 0; e < shards.num_experts(); ++e)
    sequences.push_back(shards.of_expert(e).size());
  return {{"kind", shards.chunk.empty() ? "shards" : "round"},
          {"num_sequences", shards.expert.size()},
          {"num_experts", shards.num_experts()},
          {"sequences_by_expert", sequences}};
}

Json describe_scores(const std::filesystem::path& path) {
  const ScoreMatrix scores = read_scores(path);
  return {{"kind", "scores"},
          {"num_sequences", scores.num_sequences()},
          {"num_experts", scores.num_experts()}};
}

}  // namespace

std::string describe_hdf5(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  const std::string format = file.has_attribute("format") ? file.text_attribute("format") : "";
  Json description;
  if (format == kTokenFormat) {
    description = describe_tokens(path);
  } else if (format == kShardFormat) {
    description = describe_shards(path);
  } else if (format == kScoreFormat || (format.empty() && file.has_dataset("scores"))) {
    description = describe_scores(path);
  } else {
    throw Error(path.string() + ": not a token, shard or score file of this suite");
  }
  if (file.has_attribute("version")) description["version"] = file.integer_attribute("version");
  Json attributes = Json::object();
  for (const auto& [name, value] : file.text_attributes()) attributes[name] = value;
  description["attributes"] = attributes;
  return description.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace smalltalk
