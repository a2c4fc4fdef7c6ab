// The header of a safetensors file, parsed and checked against the size of the file.
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
};

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // byte of the file where the data begins
  std::string json;
};

// Error naming the file for anything that the format forbids: sizes that do not add up, holes,
// overlap, duplicate keys, unknown types.
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

}  // namespace smalltalk
