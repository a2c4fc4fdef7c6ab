// Every dataset D of the suite has a companion D_xxh3, uint64 [pieces]: the XXH3-64 of each MiB of
// D's bytes, little-endian, row-major. Private to src/data.
#pragma once

#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

inline constexpr int64_t kPieceBytes = int64_t{1} << 20;  // the last piece may be shorter

inline int64_t num_pieces(int64_t bytes) { return (bytes + kPieceBytes - 1) / kPieceBytes; }

inline uint64_t piece_hash(std::span<const std::byte> piece) {
  return XXH3_64bits(piece.data(), piece.size());
}

inline std::vector<uint64_t> hash_pieces(std::span<const std::byte> bytes) {
  std::vector<uint64_t> checksums;
  while (!bytes.empty()) {
    const size_t size = std::min<size_t>(kPieceBytes, bytes.size());
    checksums.push_back(piece_hash(bytes.first(size)));
    bytes = bytes.subspan(size);
  }
  return checksums;
}

// What an Error says behind the file's name.
inline std::string damage_near(const std::string& dataset, int64_t element) {
  return "/" + dataset + " is damaged near element " + std::to_string(element) +
         " (checksum); make it again";
}

inline std::string checksums_of(const std::string& dataset) { return dataset + "_xxh3"; }

}  // namespace smalltalk
