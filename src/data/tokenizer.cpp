#include "smalltalk/data/tokenizer.hpp"

#include <sentencepiece_processor.h>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "word_cache.hpp"

namespace smalltalk {

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
  std::string hash;
  std::unique_ptr<WordCache> cache;  // none if the model's words depend on each other

  void encode(std::string_view text, std::vector<int32_t>& ids) const {
    const auto status = processor.Encode(text, &ids);
    if (!status.ok()) throw Error("the tokenizer failed: " + status.ToString());
  }
};

Tokenizer::Tokenizer(const std::filesystem::path& model) : impl_(std::make_unique<Impl>()) {
  const std::string bytes = read_text(model);
  const auto status = impl_->processor.LoadFromSerializedProto(bytes);
  if (!status.ok() || bytes.empty()) {
    throw Error(model.string() + ": not a SentencePiece model: " + status.ToString());
  }
  if (impl_->processor.eos_id() != kEndToken) {
    throw Error(model.string() + ": its </s> has id " + std::to_string(impl_->processor.eos_id()) +
                "; this program needs id " + std::to_string(kEndToken) +
                " (train the tokenizer with --eos_id=2)");
  }
  impl_->hash = hash_text(bytes);
  const auto encode = [impl = impl_.get()](std::string_view text, std::vector<int32_t>& ids) {
    impl->encode(text, ids);
  };
  if (WordCache::is_exact_for(impl_->processor)) {
    impl_->cache = std::make_unique<WordCache>(encode);
  }
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

int64_t Tokenizer::vocab_size() const { return impl_->processor.GetPieceSize(); }
const std::string& Tokenizer::hash() const { return impl_->hash; }

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  if (impl_->cache == nullptr || !impl_->cache->encode(text, ids)) impl_->encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  for (int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) {
      throw Error("token " + std::to_string(id) + " is not in the tokenizer's vocabulary of " +
                  std::to_string(vocab_size()));
    }
  }
  std::string text;
  const auto status = impl_->processor.Decode(ids, &text);
  if (!status.ok()) throw Error("the tokenizer failed to decode: " + status.ToString());
  return text;
}

}  // namespace smalltalk
