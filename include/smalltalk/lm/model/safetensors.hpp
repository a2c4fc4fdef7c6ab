// The safetensors format: u64 header length, JSON header, data. Float32 (and reading of bfloat16
// and float16) tensors of any shape, with string metadata. Readers check everything a header says
// against the file: shapes, offsets without holes or overlap, duplicate names, sizes. What we write
// carries a hash of the whole file, which is checked when it is read. Metadata "xxh3": 16 hex
// digits of the sum, modulo 2^64, of XXH3 of the length and the header, with 16 zeros in the hash's
// own place, and of XXH3 of each 4-byte word of the data with its index as the seed
// (additive_hash(), core/system/hash.hpp). Who has some pieces of the data can hash them alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

struct TensorView {
  std::vector<int64_t> shape;
  std::span<const float> values;
};

struct SafetensorsFile {
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Atomic. Metadata always carries {"format": "pt"}, which transformers 4 insists on.
void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata);
SafetensorsFile read_safetensors(const std::filesystem::path& path);
// Header only: what its writer says of it, its hash among it.
std::map<std::string, std::string> read_safetensors_metadata(const std::filesystem::path& path);
// Header only, as JSON text, for `inspect`.
std::string describe_safetensors(const std::filesystem::path& path);

}  // namespace smalltalk
