#include "smalltalk/data/token_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "hdf5_file.hpp"
#include "smalltalk/core/error.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

// A whole file, read-only.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (file >= 0 && ::fstat(file, &status) == 0) {
      size_ = static_cast<size_t>(status.st_size);
      void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
      if (address != MAP_FAILED) bytes_ = static_cast<const std::byte*>(address);
    }
    const int reason = errno;
    if (file >= 0) ::close(file);
    if (bytes_ == nullptr) {
      throw Error(path.string() + ": cannot be mapped: " + std::strerror(reason));
    }
  }
  ~MappedFile() {
    if (bytes_ != nullptr) ::munmap(const_cast<std::byte*>(bytes_), size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Bytes of a dataset, which must lie in the file: a read behind its end would be a bus error.
  const std::byte* at(int64_t offset, int64_t bytes, const std::filesystem::path& path) const {
    if (offset < 0 || offset + bytes > static_cast<int64_t>(size_)) {
      throw Error(path.string() + ": truncated; make it again");
    }
    return bytes_ + offset;
  }

 private:
  const std::byte* bytes_ = nullptr;
  size_t size_ = 0;
};

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
  explicit Impl(const std::filesystem::path& file) : path(file), mapped(file) {}
  std::filesystem::path path;
  TokenFileInfo info;
  MappedFile mapped;
  const std::byte* tokens = nullptr;
  const std::byte* ends = nullptr;
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
  info.token_bytes = file.element_bytes(kTokens);
  const auto tokens = file.shape(kTokens);
  const auto ends = file.shape(kDocumentEnds);
  if (tokens.size() != 1 || ends.size() != 1 || tokens[0] < 1 || ends[0] < 1 ||
      info.token_bytes != token_bytes_for(info.vocab_size) ||
      file.element_bytes(kDocumentEnds) != 8) {
    throw Error(path.string() + ": its datasets do not have the shapes and types of a token file");
  }
  info.num_tokens = tokens[0];
  info.num_documents = ends[0];
  impl_ = std::make_unique<Impl>(path);
  impl_->info = info;
  impl_->tokens =
      impl_->mapped.at(file.contiguous_offset(kTokens), info.num_tokens * info.token_bytes, path);
  impl_->ends =
      impl_->mapped.at(file.contiguous_offset(kDocumentEnds), info.num_documents * 8, path);
}

TokenFile::~TokenFile() = default;
TokenFile::TokenFile(TokenFile&&) noexcept = default;

const TokenFileInfo& TokenFile::info() const { return impl_->info; }
const std::filesystem::path& TokenFile::path() const { return impl_->path; }

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
  const std::byte* from = impl_->tokens + first * impl_->info.token_bytes;
  if (impl_->info.token_bytes == 2) {
    widen<uint16_t>(from, out);
  } else {
    widen<uint32_t>(from, out);
  }
}

std::vector<uint64_t> TokenFile::document_ends() const {
  std::vector<uint64_t> ends(static_cast<size_t>(impl_->info.num_documents));
  std::memcpy(ends.data(), impl_->ends, ends.size() * sizeof(uint64_t));
  return ends;
}

}  // namespace smalltalk
