#include "smalltalk/lm/model/safetensors.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lm/model/safetensors_header.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

float from_bfloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

float from_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1F, mantissa = bits & 0x3FF;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float value = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;  // bias 15 -> 127
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

constexpr const char* kHashKey = "xxh3";
const std::string kNoHash(16, '0');  // in its place while the hash is taken

// Of the whole file, with zeros where the hash itself stands.
void hash_header(Hasher& hasher, std::string json, const std::string& hash) {
  const std::string entry = '"' + std::string(kHashKey) + "\":\"";
  const size_t at = json.find(entry + hash + '"');
  if (at != std::string::npos) json.replace(at + entry.size(), hash.size(), kNoHash);
  const uint64_t length = json.size();
  hasher.update(std::as_bytes(std::span(&length, 1)));
  hasher.update(std::as_bytes(std::span(json)));
}

template <typename T>
std::vector<T> read_vector(std::ifstream& file, const std::filesystem::path& path, size_t bytes,
                           Hasher& hasher) {
  std::vector<T> values(bytes / sizeof(T));
  if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(bytes))) {
    throw Error("cannot read '" + path.string() + "': it ended early");
  }
  hasher.update(std::as_bytes(std::span(values)));
  return values;
}

std::vector<float> read_values(std::ifstream& file, const std::filesystem::path& path,
                               const std::string& name, const SafetensorsEntry& entry,
                               Hasher& hasher) {
  const size_t bytes = entry.end - entry.begin;
  if (entry.dtype == "F32") return read_vector<float>(file, path, bytes, hasher);
  if (entry.dtype != "BF16" && entry.dtype != "F16") {
    throw Error("'" + path.string() + "': tensor '" + name + "' has type " + entry.dtype +
                "; only F32, BF16 and F16 are read");
  }
  const auto halves = read_vector<uint16_t>(file, path, bytes, hasher);
  std::vector<float> values(halves.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    values[i] = entry.dtype == "BF16" ? from_bfloat16(halves[i]) : from_float16(halves[i]);
  }
  return values;
}

}  // namespace

void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}, {kHashKey, kNoHash}};
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  uint64_t offset = 0;
  std::vector<std::span<const std::byte>> pieces(2);
  for (const auto& [name, tensor] : tensors) {
    int64_t size = 1;
    for (int64_t extent : tensor.shape) size *= extent;
    ST_CHECK(size == static_cast<int64_t>(tensor.values.size()) && name != "__metadata__");
    const uint64_t end = offset + tensor.values.size_bytes();
    header[name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
    pieces.push_back(std::as_bytes(tensor.values));
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data then begins on a multiple of 8

  Hasher hasher;
  hash_header(hasher, text, kNoHash);
  for (const auto piece : pieces) hasher.update(piece);
  text.replace(text.find(kNoHash, text.find(kHashKey)), kNoHash.size(), hasher.digest());
  const uint64_t length = text.size();
  pieces[0] = std::as_bytes(std::span(&length, 1));
  pieces[1] = std::as_bytes(std::span(text));
  write_pieces_atomically(path, pieces);
}

SafetensorsFile read_safetensors(const std::filesystem::path& path) {
  const SafetensorsHeader header = read_safetensors_header(path);
  const auto hash = header.metadata.find(kHashKey);
  Hasher hasher;
  hash_header(hasher, header.json, hash == header.metadata.end() ? "" : hash->second);
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;  // of the data
  for (const auto& entry : header.tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->second.begin < b->second.begin; });
  std::ifstream file(path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(header.data_begin));
  SafetensorsFile result;
  result.metadata = header.metadata;
  for (const auto* tensor : order) {
    const auto& [name, entry] = *tensor;
    result.tensors.emplace(
        name, SafetensorsFile::Tensor{entry.shape, read_values(file, path, name, entry, hasher)});
  }
  // Files of other programs carry no hash.
  if (hash != header.metadata.end() && hash->second != hasher.digest()) {
    throw Error("'" + path.string() + "' is damaged: its bytes do not have the hash " +
                hash->second + " that it was written with");
  }
  return result;
}

std::map<std::string, std::string> read_safetensors_metadata(const std::filesystem::path& path) {
  return read_safetensors_header(path).metadata;
}

std::string describe_safetensors(const std::filesystem::path& path) {
  return nlohmann::ordered_json::parse(read_safetensors_header(path).json).dump(2);
}

}  // namespace smalltalk
