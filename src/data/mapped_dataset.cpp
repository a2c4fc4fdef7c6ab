#include "mapped_dataset.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "checksums.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

MappedDataset::MappedDataset(const Hdf5File& file, const std::string& name)
    : path_(file.path()), name_(name), element_bytes_(file.element_bytes(name)) {
  size_ = element_bytes_;
  for (const int64_t extent : file.shape(name)) size_ *= extent;
  checksums_ = file.checksums(name);
  verified_ = std::make_unique<std::atomic<bool>[]>(checksums_.size());
  if (size_ == 0) return;
  const int64_t offset = file.contiguous_offset(name);
  if (offset < 0) throw Error(path_.string() + ": /" + name + " is not laid out contiguously");
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  const int64_t start = offset / page * page;
  mapping_bytes_ = static_cast<size_t>(offset + size_ - start);
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  const bool known = descriptor >= 0 && ::fstat(descriptor, &status) == 0;
  // A read behind the file's end would be a bus error.
  const bool whole = known && offset + size_ <= status.st_size;
  void* address = whole ? ::mmap(nullptr, mapping_bytes_, PROT_READ, MAP_SHARED, descriptor, start)
                        : MAP_FAILED;
  const int reason = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (known && !whole) throw Error(path_.string() + ": truncated; make it again");
  if (address == MAP_FAILED) {
    throw SystemError(path_.string() + ": cannot be mapped: " + std::strerror(reason));
  }
  mapping_ = static_cast<const std::byte*>(address);
  data_ = mapping_ + (offset - start);
}

MappedDataset::~MappedDataset() {
  if (mapping_ != nullptr) ::munmap(const_cast<std::byte*>(mapping_), mapping_bytes_);
}

std::span<const std::byte> MappedDataset::bytes(int64_t first, int64_t count) const {
  ST_CHECK(first >= 0 && count >= 0 && first <= size_ - count);
  if (count == 0) return {};
  for (int64_t piece = first / kPieceBytes; piece <= (first + count - 1) / kPieceBytes; ++piece) {
    if (checksums_.empty()) break;
    const auto i = static_cast<size_t>(piece);
    if (verified_[i].load(std::memory_order_relaxed)) continue;
    const int64_t begin = piece * kPieceBytes;
    const auto size = static_cast<size_t>(std::min(kPieceBytes, size_ - begin));
    if (piece_hash({data_ + begin, size}) != checksums_[i]) {
      throw Error(path_.string() + ": " + damage_near(name_, begin / element_bytes_));
    }
    verified_[i].store(true, std::memory_order_relaxed);
  }
  return {data_ + first, static_cast<size_t>(count)};
}

}  // namespace smalltalk
