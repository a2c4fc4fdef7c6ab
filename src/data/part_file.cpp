#include "part_file.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "prepare_source.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

constexpr char kMark[8] = {'S', 'T', 'P', 'A', 'R', 'T', '0', '3'};

constexpr size_t kBufferBytes = size_t{1} << 20;

struct Tail {
  uint64_t trailer_size = 0;
  char trailer_hash[16] = {};
  char mark[8] = {};
};
static_assert(sizeof(Tail) == 32);

nlohmann::json to_json(const PartInfo& info) {
  return {{"num_tokens", info.num_tokens},   {"num_documents", info.num_documents},
          {"text_bytes", info.text_bytes},   {"token_bytes", info.token_bytes},
          {"domains", info.domains},         {"domain_documents", info.domain_documents},
          {"documents", info.bad.documents}, {"bad_utf8", info.bad.bad_utf8},
          {"empty", info.bad.empty},         {"broken_json", info.bad.broken_json},
          {"examples", info.bad.examples},   {"bent", info.bad.bent},
          {"sources", info.sources},         {"content_hash", info.content_hash}};
}

// get() would take a fraction, and one that no integer can hold.
int64_t count_at(const nlohmann::json& json, const char* key) {
  const nlohmann::json& value = json.at(key);
  if (!value.is_number_integer()) throw Error(std::string(key) + " is not a count");
  return value.get<int64_t>();
}

PartInfo from_json(const nlohmann::json& json) {
  PartInfo info;
  info.num_tokens = count_at(json, "num_tokens");
  info.num_documents = count_at(json, "num_documents");
  info.text_bytes = count_at(json, "text_bytes");
  info.token_bytes = count_at(json, "token_bytes");
  info.bad.documents = count_at(json, "documents");
  info.bad.bad_utf8 = count_at(json, "bad_utf8");
  info.bad.empty = count_at(json, "empty");
  info.bad.broken_json = count_at(json, "broken_json");
  json.at("domains").get_to(info.domains);
  json.at("domain_documents").get_to(info.domain_documents);
  json.at("bent").get_to(info.bad.bent);
  json.at("sources").get_to(info.sources);
  json.at("content_hash").get_to(info.content_hash);
  json.at("examples").get_to(info.bad.examples);
  return info;
}

int64_t content_bytes(const PartInfo& info) {
  return info.num_tokens * info.token_bytes + info.num_documents * 12;
}

// Streams the tokens of documents to a part file, and keeps the little that is known of each
// document.
class PartWriter {
 public:
  PartWriter(const std::filesystem::path& path, const Tokenizer& tokenizer)
      : path_(path), tokenizer_(tokenizer) {
    info_.token_bytes = token_bytes_for(tokenizer.vocab_size());
  }

  void add(const Document& document) {
    std::vector<int32_t> ids = tokenizer_.encode(document.text);
    ids.push_back(kEndToken);
    if (info_.token_bytes == 2) {
      narrow_.assign(ids.begin(), ids.end());
      put_content(narrow_);
    } else {
      put_content(ids);
    }
    info_.num_tokens += static_cast<int64_t>(ids.size());
    info_.text_bytes += static_cast<int64_t>(document.text.size());
    ends_.push_back(static_cast<uint64_t>(info_.num_tokens));
    const auto [place, is_new] =
        domain_index_.try_emplace(std::string(document.domain), info_.domains.size());
    if (is_new) {
      info_.domains.emplace_back(document.domain);
      info_.domain_documents.push_back(0);
    }
    ++info_.domain_documents[place->second];
    domains_.push_back(static_cast<uint32_t>(place->second));
  }

  PartInfo finish(const BadDocuments& bad, std::vector<std::vector<uint64_t>> sources) {
    info_.sources = std::move(sources);
    info_.num_documents = static_cast<int64_t>(ends_.size());
    info_.bad = bad;
    put_content(ends_);
    put_content(domains_);
    info_.content_hash = hasher_.digest();
    // File names in the examples may be any bytes.
    const std::string trailer =
        to_json(info_).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    Tail tail{trailer.size(), {}, {}};
    hash_text(trailer).copy(tail.trailer_hash, sizeof(tail.trailer_hash));
    std::copy(std::begin(kMark), std::end(kMark), tail.mark);
    buffer_ += trailer;
    buffer_.append(reinterpret_cast<const char*>(&tail), sizeof(tail));
    append_text(path_, buffer_);
    return info_;
  }

 private:
  template <typename T>
  void put_content(const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    hasher_.update(bytes);
    buffer_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (buffer_.size() < kBufferBytes) return;
    append_text(path_, buffer_);
    buffer_.clear();
  }

  std::filesystem::path path_;
  std::string buffer_;
  Hasher hasher_;
  const Tokenizer& tokenizer_;
  PartInfo info_;
  std::vector<uint16_t> narrow_;
  std::vector<uint64_t> ends_;
  std::vector<uint32_t> domains_;
  std::unordered_map<std::string, size_t> domain_index_;
};

}  // namespace

PartInfo write_part(const std::filesystem::path& part_file,
                    const std::vector<std::filesystem::path>& inputs,
                    std::span<const InputPart> parts, const DocumentFields& fields,
                    const Tokenizer& tokenizer) {
  PartInfo info;
  write_atomically(part_file, [&](const std::filesystem::path& temporary) {
    PartWriter writer(temporary, tokenizer);
    BadDocuments bad;
    std::vector<std::vector<uint64_t>> sources;
    for (const InputPart& part : parts) {
      const std::filesystem::path& input = inputs[static_cast<size_t>(part.file)];
      sources.push_back(hashes_of(input, part));
      const auto take = [&](const Document& document) {
        stop_if_asked();  // a compressed file is one part and may be long
        writer.add(document);
        return true;
      };
      bad.add(read_part(input, part, take, fields));
    }
    info = writer.finish(bad, std::move(sources));
  });
  return info;
}

std::optional<PartInfo> read_part_info(const std::filesystem::path& part_file) {
  std::ifstream in(part_file, std::ios::binary | std::ios::ate);
  if (!in) return std::nullopt;
  const auto size = static_cast<int64_t>(in.tellg());
  constexpr auto kTailBytes = static_cast<int64_t>(sizeof(Tail));
  Tail tail;
  in.seekg(std::max<int64_t>(size - kTailBytes, 0));
  in.read(reinterpret_cast<char*>(&tail), kTailBytes);
  if (!in || std::memcmp(tail.mark, kMark, sizeof(kMark)) != 0 ||
      tail.trailer_size > static_cast<uint64_t>(size - kTailBytes)) {
    return std::nullopt;
  }
  std::string trailer(tail.trailer_size, '\0');
  const int64_t content = size - kTailBytes - static_cast<int64_t>(trailer.size());
  in.seekg(content);
  in.read(trailer.data(), static_cast<std::streamsize>(trailer.size()));
  if (!in || hash_text(trailer) != std::string_view(tail.trailer_hash, sizeof(tail.trailer_hash))) {
    return std::nullopt;
  }
  try {
    const PartInfo info = from_json(parse_json(trailer, part_file.string()));
    const bool plausible = (info.token_bytes == 2 || info.token_bytes == 4) &&
                           info.num_tokens >= 0 && info.num_tokens <= size &&
                           info.num_documents >= 0 && info.num_documents <= size;
    if (plausible && content_bytes(info) == content &&
        info.domains.size() == info.domain_documents.size()) {
      return info;
    }
  } catch (const std::exception&) {  // whole, but of another program
  }
  return std::nullopt;
}

void require_whole(const std::filesystem::path& part_file, const PartInfo& info) {
  std::ifstream in(part_file, std::ios::binary);
  std::vector<char> buffer(size_t{1} << 20);
  Hasher hasher;
  for (int64_t left = content_bytes(info); left > 0;) {
    const int64_t size = std::min<int64_t>(left, int64_t{1} << 20);
    if (!in.read(buffer.data(), size)) break;
    hasher.update(std::as_bytes(std::span(buffer).first(static_cast<size_t>(size))));
    left -= size;
  }
  if (in && hasher.digest() == info.content_hash) return;
  std::error_code ignored;
  std::filesystem::remove(part_file, ignored);
  throw Error(part_file.string() + ": was damaged, and is removed; run the same command again");
}

template <typename T>
void read_part_values(const std::filesystem::path& part_file, int64_t offset, std::span<T> values) {
  std::ifstream in(part_file, std::ios::binary);
  in.seekg(offset);
  in.read(reinterpret_cast<char*>(values.data()),
          static_cast<std::streamsize>(values.size_bytes()));
  if (!in) throw Error(part_file.string() + ": cannot be read; run the same command again");
}
template void read_part_values(const std::filesystem::path&, int64_t, std::span<uint16_t>);
template void read_part_values(const std::filesystem::path&, int64_t, std::span<uint32_t>);
template void read_part_values(const std::filesystem::path&, int64_t, std::span<uint64_t>);

}  // namespace smalltalk
