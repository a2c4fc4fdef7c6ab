#include "smalltalk/data/token_writer.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "hdf5_file.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "token_format.hpp"

namespace smalltalk {

struct TokenWriter::Impl {
  std::filesystem::path shown;
  TokenFileInfo info;
  Hdf5File file;
  Hasher hasher{};
  int64_t tokens = 0;
  int64_t documents = 0;

  template <typename Stored, typename Given>
  void add(std::span<const Given> given) {
    const auto bad = std::find_if(given.begin(), given.end(), [&](Given token) {
      return static_cast<int64_t>(token) >= info.vocab_size;
    });
    if (bad != given.end()) {
      throw Error(fmt::format("{}: token {} is outside of the vocabulary of {}", shown.string(),
                              *bad, info.vocab_size));
    }
    ST_CHECK(tokens + static_cast<int64_t>(given.size()) <= info.num_tokens);
    if constexpr (std::is_same_v<Stored, Given>) {
      write(given);
    } else {
      const std::vector<Stored> stored(given.begin(), given.end());
      write(std::span<const Stored>(stored));
    }
  }

  template <typename Stored>
  void write(std::span<const Stored> stored) {
    file.write_at<Stored>(kTokens, tokens, stored);
    hasher.update(std::as_bytes(stored));
    tokens += static_cast<int64_t>(stored.size());
  }
};

TokenWriter::TokenWriter(const std::filesystem::path& path, const std::filesystem::path& shown,
                         const TokenFileInfo& info, const std::vector<std::string>& domain_names)
    : impl_(new Impl{shown, info, Hdf5File::create(path, shown)}) {
  ST_CHECK(info.num_tokens > 0 && info.num_documents > 0 && info.vocab_size > 0);
  ST_CHECK(!domain_names.empty() && domain_names.size() <= 65536);
  impl_->info.token_bytes = token_bytes_for(info.vocab_size);
  Hdf5File& file = impl_->file;
  file.write_format(kTokenFormat);
  file.write_integer_attribute("vocab_size", info.vocab_size);
  file.write_integer_attribute("end_token", info.end_token);
  file.write_integer_attribute("text_bytes", info.text_bytes);
  file.write_text_attribute("tokenizer_hash", info.tokenizer_hash);
  file.write_list("domains", domain_names);
  if (impl_->info.token_bytes == 2) {
    file.create_dataset<uint16_t>(kTokens, info.num_tokens);
  } else {
    file.create_dataset<uint32_t>(kTokens, info.num_tokens);
  }
  file.create_dataset<uint64_t>(kDocumentEnds, info.num_documents);
  file.create_dataset<uint16_t>(kDocumentDomains, info.num_documents);
}

TokenWriter::~TokenWriter() = default;

void TokenWriter::add_tokens(std::span<const uint32_t> tokens) {
  if (impl_->info.token_bytes == 2) {
    impl_->add<uint16_t, uint32_t>(tokens);
  } else {
    impl_->add<uint32_t, uint32_t>(tokens);
  }
}

void TokenWriter::add_tokens(std::span<const uint16_t> tokens) {
  if (impl_->info.token_bytes == 2) {
    impl_->add<uint16_t, uint16_t>(tokens);
  } else {
    impl_->add<uint32_t, uint16_t>(tokens);
  }
}

void TokenWriter::add_documents(std::span<const uint64_t> ends, std::span<const uint16_t> domains) {
  ST_CHECK(ends.size() == domains.size());
  ST_CHECK(impl_->documents + static_cast<int64_t>(ends.size()) <= impl_->info.num_documents);
  impl_->file.write_at<uint64_t>(kDocumentEnds, impl_->documents, ends);
  impl_->file.write_at<uint16_t>(kDocumentDomains, impl_->documents, domains);
  impl_->documents += static_cast<int64_t>(ends.size());
}

void TokenWriter::add_text(const std::string& name, const std::string& value) {
  impl_->file.write_text_attribute(name, value);
}

void TokenWriter::add_integer(const std::string& name, int64_t value) {
  impl_->file.write_integer_attribute(name, value);
}

void TokenWriter::add_list(const std::string& name, const std::vector<std::string>& values) {
  impl_->file.write_list(name, values);
}

void TokenWriter::finish() {
  ST_CHECK(impl_->tokens == impl_->info.num_tokens);
  ST_CHECK(impl_->documents == impl_->info.num_documents);
  impl_->file.write_text_attribute("content_hash", impl_->hasher.digest());
  impl_->file.close();
}

}  // namespace smalltalk
