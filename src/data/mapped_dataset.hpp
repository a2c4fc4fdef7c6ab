// A contiguous dataset as read-only memory. Each piece is verified when it is first touched; any
// number of threads may read. Private to src/data.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hdf5_file.hpp"

namespace smalltalk {

class MappedDataset {
 public:
  // Errors: not contiguous, truncated, without the checksums that files of the suite have. The file
  // may be closed afterwards.
  MappedDataset(const Hdf5File& file, const std::string& name);
  ~MappedDataset();
  MappedDataset(const MappedDataset&) = delete;
  MappedDataset& operator=(const MappedDataset&) = delete;

  int64_t size_bytes() const { return size_; }
  // REQUIRES bytes [first, first + count) to exist. Error: damaged.
  std::span<const std::byte> bytes(int64_t first, int64_t count) const;

  // Elements [first, first + count). REQUIRES T to be the dataset's type.
  template <typename T>
  std::span<const T> values(int64_t first, int64_t count) const {
    constexpr auto kSize = static_cast<int64_t>(sizeof(T));
    const std::span<const std::byte> raw = bytes(first * kSize, count * kSize);
    return {reinterpret_cast<const T*>(raw.data()), static_cast<size_t>(count)};
  }

 private:
  std::filesystem::path path_;
  std::string name_;
  int64_t size_ = 0;
  int64_t element_bytes_ = 1;
  std::vector<uint64_t> checksums_;                // empty: there are none
  std::unique_ptr<std::atomic<bool>[]> verified_;  // of each piece
  const std::byte* mapping_ = nullptr;             // from the page that holds the first byte
  size_t mapping_bytes_ = 0;
  const std::byte* data_ = nullptr;
};

}  // namespace smalltalk
