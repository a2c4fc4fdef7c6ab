#include "part_file.hpp"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "smalltalk/core/error.hpp"
#include "smalltalk/core/run_folder.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

constexpr char kMark[8] = {'S', 'T', 'P', 'A', 'R', 'T', '0', '1'};

template <typename T>
void put(std::ofstream& out, const T* values, size_t count) {
  out.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count * sizeof(T)));
}

nlohmann::json to_json(const PartInfo& info) {
  return {{"num_tokens", info.num_tokens},
          {"num_documents", info.num_documents},
          {"text_bytes", info.text_bytes},
          {"token_bytes", info.token_bytes},
          {"domains", info.domains},
          {"documents", info.bad.documents},
          {"bad_utf8", info.bad.bad_utf8},
          {"empty", info.bad.empty},
          {"broken_json", info.bad.broken_json},
          {"examples", info.bad.examples}};
}

PartInfo from_json(const nlohmann::json& json) {
  PartInfo info;
  json.at("num_tokens").get_to(info.num_tokens);
  json.at("num_documents").get_to(info.num_documents);
  json.at("text_bytes").get_to(info.text_bytes);
  json.at("token_bytes").get_to(info.token_bytes);
  json.at("domains").get_to(info.domains);
  json.at("documents").get_to(info.bad.documents);
  json.at("bad_utf8").get_to(info.bad.bad_utf8);
  json.at("empty").get_to(info.bad.empty);
  json.at("broken_json").get_to(info.bad.broken_json);
  json.at("examples").get_to(info.bad.examples);
  return info;
}

// Streams the tokens of documents to a part, and keeps the little that is known of each document.
class PartWriter {
 public:
  PartWriter(const std::filesystem::path& path, const Tokenizer& tokenizer)
      : out_(path, std::ios::binary), tokenizer_(tokenizer) {
    info_.token_bytes = token_bytes_for(tokenizer.vocab_size());
  }

  void add(const Document& document) {
    std::vector<int32_t> ids = tokenizer_.encode(document.text);
    ids.push_back(kEndToken);
    if (info_.token_bytes == 2) {
      narrow_.assign(ids.begin(), ids.end());
      put(out_, narrow_.data(), narrow_.size());
    } else {
      put(out_, ids.data(), ids.size());
    }
    info_.num_tokens += static_cast<int64_t>(ids.size());
    info_.text_bytes += static_cast<int64_t>(document.text.size());
    ends_.push_back(static_cast<uint64_t>(info_.num_tokens));
    const auto [place, is_new] =
        domain_index_.try_emplace(std::string(document.domain), info_.domains.size());
    if (is_new) info_.domains.emplace_back(document.domain);
    if (info_.domains.size() > 65535) {
      throw Error("more than 65535 different domains; a domain is meant as a coarse label");
    }
    domains_.push_back(static_cast<uint16_t>(place->second));
  }

  PartInfo finish(const BadDocuments& bad) {
    info_.num_documents = static_cast<int64_t>(ends_.size());
    info_.bad = bad;
    put(out_, ends_.data(), ends_.size());
    put(out_, domains_.data(), domains_.size());
    // File names in the examples may be any bytes.
    const std::string trailer =
        to_json(info_).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    const uint64_t size = trailer.size();
    put(out_, trailer.data(), trailer.size());
    put(out_, &size, 1);
    put(out_, kMark, sizeof(kMark));
    out_.close();
    if (!out_) throw Error("a part of the tokens cannot be written (disk full?)");
    return info_;
  }

 private:
  std::ofstream out_;
  const Tokenizer& tokenizer_;
  PartInfo info_;
  std::vector<uint16_t> narrow_;
  std::vector<uint64_t> ends_;
  std::vector<uint16_t> domains_;
  std::unordered_map<std::string, size_t> domain_index_;
};

}  // namespace

PartInfo write_part(const std::filesystem::path& part, const std::filesystem::path& file,
                    const DocumentBlock& block, const Tokenizer& tokenizer) {
  PartInfo info;
  write_atomically(part, [&](const std::filesystem::path& temporary) {
    PartWriter writer(temporary, tokenizer);
    const BadDocuments bad = read_block(file, block, [&](const Document& document) {
      writer.add(document);
      return true;
    });
    info = writer.finish(bad);
  });
  return info;
}

std::optional<PartInfo> read_part_info(const std::filesystem::path& part) {
  std::ifstream in(part, std::ios::binary | std::ios::ate);
  if (!in) return std::nullopt;
  const auto size = static_cast<int64_t>(in.tellg());
  constexpr int64_t kTail = 16;
  if (size < kTail) return std::nullopt;
  uint64_t trailer_size = 0;
  char mark[sizeof(kMark)];
  in.seekg(size - kTail);
  in.read(reinterpret_cast<char*>(&trailer_size), sizeof(trailer_size));
  in.read(mark, sizeof(mark));
  if (!in || std::memcmp(mark, kMark, sizeof(kMark)) != 0 ||
      trailer_size > static_cast<uint64_t>(size - kTail)) {
    return std::nullopt;
  }
  std::string trailer(trailer_size, '\0');
  in.seekg(size - kTail - static_cast<int64_t>(trailer_size));
  in.read(trailer.data(), static_cast<std::streamsize>(trailer_size));
  const auto json = nlohmann::json::parse(trailer, nullptr, false);
  if (!in || json.is_discarded()) return std::nullopt;
  PartInfo info = from_json(json);
  const int64_t expected = info.num_tokens * info.token_bytes + info.num_documents * 10 +
                           static_cast<int64_t>(trailer_size) + kTail;
  if (size != expected) return std::nullopt;
  return info;
}

template <typename T>
void read_part_values(const std::filesystem::path& part, int64_t offset, std::span<T> values) {
  std::ifstream in(part, std::ios::binary);
  in.seekg(offset);
  in.read(reinterpret_cast<char*>(values.data()),
          static_cast<std::streamsize>(values.size_bytes()));
  if (!in) throw Error(part.string() + ": cannot be read; run the same command again");
}
template void read_part_values(const std::filesystem::path&, int64_t, std::span<uint16_t>);
template void read_part_values(const std::filesystem::path&, int64_t, std::span<uint32_t>);
template void read_part_values(const std::filesystem::path&, int64_t, std::span<uint64_t>);

}  // namespace smalltalk
