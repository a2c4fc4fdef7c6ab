// The header of a safetensors file: made, or parsed and checked against the size of the file; and
// the hash in it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace smalltalk {

struct SafetensorsEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes after the header
  bool operator==(const SafetensorsEntry&) const = default;
};

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // byte of the file where the data begins
  std::string json;

  uint64_t data_bytes() const;
  std::string bytes() const;  // of the file before its data
};

// Of float32 tensors of these shapes by name, one after another; with zeros in place of the hash.
// Where the tensors lie in the data depends on names and shapes alone.
SafetensorsHeader make_safetensors_header(const std::map<std::string, std::vector<int64_t>>& shapes,
                                          const std::map<std::string, std::string>& metadata);

// Error naming the file for anything that the format forbids: sizes that do not add up, holes,
// overlap, duplicate keys, unknown types.
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

// The hash of a file, as its metadata says; empty if that of another program.
std::string named_hash(const SafetensorsHeader& header);
// Byte of the file where it stands. REQUIRES that there is one.
uint64_t hash_position(const SafetensorsHeader& header);
// What it has to be: XXH3 of the header with zeros in its place plus additive_hash() of the data,
// modulo 2^64.
std::string hash_with_data(const SafetensorsHeader& header, uint64_t data_hash);
// Error if the header names another one.
void require_hash(const std::filesystem::path& path, const SafetensorsHeader& header,
                  uint64_t data_hash);

}  // namespace smalltalk
