#include "smalltalk/data/token_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "checksums.hpp"
#include "hdf5_file.hpp"
#include "mapped_dataset.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/data/order_file.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

template <typename Stored>
void widen(const std::byte* from, std::span<int64_t> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    Stored value;  // copied: nothing promises alignment
    std::memcpy(&value, from + i * sizeof(Stored), sizeof(Stored));
    out[i] = value;
  }
}

}  // namespace

struct TokenFile::Impl {
  Impl(const std::filesystem::path& place, TokenFileInfo what, const Hdf5File& file)
      : path(place), info(std::move(what)), tokens(file, kTokens), ends(file, kDocumentEnds) {}
  std::filesystem::path path;
  TokenFileInfo info;
  MappedDataset tokens;
  MappedDataset ends;
  // Of reordered documents: where each begins in the order and in the file. Else both are empty.
  std::vector<int64_t> starts = {}, places = {};

  // Tokens that lie one behind the other in the file.
  void copy(int64_t first, std::span<int64_t> out) const {
    const auto size = static_cast<int64_t>(out.size());
    const std::byte* from = tokens.bytes(first * info.token_bytes, size * info.token_bytes).data();
    if (info.token_bytes == 2) {
      widen<uint16_t>(from, out);
    } else {
      widen<uint32_t>(from, out);
    }
  }
};

TokenFile::TokenFile(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  file.require_format(kTokenFormat);
  TokenFileInfo info;
  info.vocab_size = file.integer_attribute("vocab_size");
  info.end_token = file.integer_attribute("end_token");
  info.text_bytes = file.integer_attribute("text_bytes");
  info.tokenizer_hash = file.text_attribute("tokenizer_hash");
  info.content_hash = file.text_attribute("content_hash");
  info.token_bytes = token_bytes_for(info.vocab_size);
  const auto tokens = file.shape(kTokens);
  const auto ends = file.shape(kDocumentEnds);
  const bool right_type =
      info.token_bytes == 2 ? file.has_type<uint16_t>(kTokens) : file.has_type<uint32_t>(kTokens);
  if (tokens.size() != 1 || ends.size() != 1 || tokens[0] < 1 || ends[0] < 1 || !right_type ||
      !file.has_type<uint64_t>(kDocumentEnds)) {
    throw Error(path.string() + ": its datasets do not have the shapes and types of a token file");
  }
  if (file.has_attribute("packed_length")) {
    info.packed_length = file.integer_attribute("packed_length");
    info.padding = file.integer_attribute("padding");
    if (info.packed_length < 1 || info.padding < 1 || info.padding >= tokens[0]) {
      throw Error(fmt::format("{}: {} tokens of padding for sequences of {} are impossible",
                              path.string(), info.padding, info.packed_length));
    }
  }
  info.num_tokens = tokens[0];
  info.num_documents = ends[0];
  impl_ = std::make_unique<Impl>(path, info, file);
}

TokenFile::TokenFile(const std::filesystem::path& path, const DocumentOrder& order)
    : TokenFile(path) {
  TokenFileInfo& info = impl_->info;
  if (info.packed_length > 0) throw Error(path.string() + ": packed documents have no other order");
  const auto tokens = order.provenance.find("tokens");
  if (tokens == order.provenance.end() || tokens->second != info.content_hash ||
      std::ssize(order.documents) != info.num_documents) {
    throw Error(path.string() + ": the order of its documents was made from other tokens");
  }
  const std::vector<uint64_t> ends = document_ends();
  int64_t start = 0;
  for (const uint64_t document : order.documents) {
    const uint64_t begin = document == 0 ? 0 : ends[document - 1];
    impl_->starts.push_back(start);
    impl_->places.push_back(static_cast<int64_t>(begin));
    start += static_cast<int64_t>(ends[document] - begin);
  }
  if (start != info.num_tokens)
    throw Error(path.string() + ": tokens lie outside of its documents");
  info.order_hash = order.content_hash;
  info.content_hash = hash_text(info.content_hash + " " + info.order_hash);
}

TokenFile::~TokenFile() = default;
TokenFile::TokenFile(TokenFile&&) noexcept = default;

const TokenFileInfo& TokenFile::info() const { return impl_->info; }
const std::filesystem::path& TokenFile::path() const { return impl_->path; }
bool TokenFile::is_reordered() const { return !impl_->starts.empty(); }

int64_t TokenFile::num_sequences(int64_t seq_length) const {
  if (seq_length < 1) throw Error("sequences must have at least one token");
  return (impl_->info.num_tokens - 1) / seq_length;
}

void TokenFile::read(int64_t first, std::span<int64_t> out) const {
  const auto size = static_cast<int64_t>(out.size());
  if (first < 0 || first > impl_->info.num_tokens - size) {
    throw Error(fmt::format("{}: tokens {} to {} asked for, of {}", impl_->path.string(), first,
                            first + size, impl_->info.num_tokens));
  }
  if (!is_reordered()) {
    impl_->copy(first, out);
    return;
  }
  const std::vector<int64_t>& starts = impl_->starts;
  auto document = static_cast<size_t>(std::ranges::upper_bound(starts, first) - starts.begin()) - 1;
  for (; !out.empty(); ++document) {
    const bool last = document + 1 == starts.size();
    const int64_t end = last ? impl_->info.num_tokens : starts[document + 1];
    const auto piece = out.first(std::min(out.size(), static_cast<size_t>(end - first)));
    impl_->copy(impl_->places[document] + first - starts[document], piece);
    first = end;
    out = out.subspan(piece.size());
  }
}

std::string TokenFile::hash_of_first(int64_t num_tokens) const {
  ST_CHECK(!is_reordered());
  if (num_tokens < 0 || num_tokens > impl_->info.num_tokens) {
    throw Error(fmt::format("{}: the hash of {} tokens asked for, of {}", impl_->path.string(),
                            num_tokens, impl_->info.num_tokens));
  }
  Hasher hasher;
  const int64_t size = num_tokens * impl_->info.token_bytes;
  for (int64_t at = 0; at < size; at += kPieceBytes) {
    hasher.update(impl_->tokens.bytes(at, std::min(kPieceBytes, size - at)));
  }
  return hasher.digest();
}

std::vector<uint64_t> TokenFile::document_ends() const {
  if (is_reordered()) {
    std::vector<uint64_t> in_order(impl_->starts.begin() + 1, impl_->starts.end());
    in_order.push_back(static_cast<uint64_t>(impl_->info.num_tokens));
    return in_order;
  }
  const auto ends = impl_->ends.values<uint64_t>(0, impl_->info.num_documents);
  return {ends.begin(), ends.end()};
}

bool extends(const TokenFile& tokens, const std::string& content_hash,
             const std::string& num_tokens) {
  if (tokens.info().content_hash == content_hash) return true;
  if (num_tokens.empty() || tokens.is_reordered()) return false;
  const int64_t size = std::stoll(num_tokens);
  return size <= tokens.info().num_tokens && tokens.hash_of_first(size) == content_hash;
}

}  // namespace smalltalk
