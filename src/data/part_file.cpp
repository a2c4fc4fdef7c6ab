#include "part_file.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

constexpr char kMark[8] = {'S', 'T', 'P', 'A', 'R', 'T', '0', '2'};

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
          {"domains", info.domains},         {"content_hash", info.content_hash},
          {"documents", info.bad.documents}, {"bad_utf8", info.bad.bad_utf8},
          {"empty", info.bad.empty},         {"broken_json", info.bad.broken_json},
          {"examples", info.bad.examples}};
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
  json.at("content_hash").get_to(info.content_hash);
  json.at("examples").get_to(info.bad.examples);
  return info;
}

int64_t content_bytes(const PartInfo& info) {
  return info.num_tokens * info.token_bytes + info.num_documents * 10;
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
    if (is_new) info_.domains.emplace_back(document.domain);
    if (info_.domains.size() > 65535) {
      throw Error("more than 65535 different domains; a domain is meant as a coarse label");
    }
    domains_.push_back(static_cast<uint16_t>(place->second));
  }

  PartInfo finish(const BadDocuments& bad) {
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
  std::vector<uint16_t> domains_;
  std::unordered_map<std::string, size_t> domain_index_;
};

}  // namespace

PartInfo write_part(const std::filesystem::path& part_file, const std::filesystem::path& input,
                    const InputPart& part, const Tokenizer& tokenizer) {
  PartInfo info;
  write_atomically(part_file, [&](const std::filesystem::path& temporary) {
    PartWriter writer(temporary, tokenizer);
    const BadDocuments bad = read_part(input, part, [&](const Document& document) {
      stop_if_asked();  // a compressed file is one part and may be long
      writer.add(document);
      return true;
    });
    info = writer.finish(bad);
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
    if (plausible && content_bytes(info) == content) return info;
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
