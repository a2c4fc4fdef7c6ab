#include "smalltalk/lm/model/safetensors.hpp"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "lm/model/safetensors_header.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/file.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {
namespace {

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

template <typename T>
std::vector<T> read_vector(const File& file, const SafetensorsHeader& header,
                           const SafetensorsEntry& entry, uint64_t& hash) {
  std::vector<T> values((entry.end - entry.begin) / sizeof(T));
  const auto bytes = std::as_writable_bytes(std::span(values));
  file.read_at(header.data_begin + entry.begin, bytes);
  hash += additive_hash(bytes, entry.begin / sizeof(float));
  return values;
}

std::vector<float> read_values(const File& file, const std::filesystem::path& path,
                               const SafetensorsHeader& header, const std::string& name,
                               const SafetensorsEntry& entry, uint64_t& hash) {
  if (entry.dtype == "F32") return read_vector<float>(file, header, entry, hash);
  if (entry.dtype != "BF16" && entry.dtype != "F16") {
    throw Error("'" + path.string() + "': tensor '" + name + "' has type " + entry.dtype +
                "; only F32, BF16 and F16 are read");
  }
  const auto halves = read_vector<uint16_t>(file, header, entry, hash);
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
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& [name, tensor] : tensors) shapes[name] = tensor.shape;
  const SafetensorsHeader header = make_safetensors_header(shapes, metadata);
  uint64_t hash = 0;
  std::vector<std::span<const std::byte>> pieces(1);
  for (const auto& [name, tensor] : tensors) {
    const SafetensorsEntry& entry = header.tensors.at(name);
    ST_CHECK(entry.end - entry.begin == tensor.values.size_bytes());
    pieces.push_back(std::as_bytes(tensor.values));
    hash += additive_hash(pieces.back(), entry.begin / sizeof(float));
  }
  const std::string digits = hash_with_data(header, hash);
  std::string start = header.bytes();
  start.replace(hash_position(header), digits.size(), digits);
  pieces[0] = std::as_bytes(std::span(start));
  write_pieces_atomically(path, pieces);
}

SafetensorsFile read_safetensors(const std::filesystem::path& path) {
  const SafetensorsHeader header = read_safetensors_header(path);
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;  // of the data
  for (const auto& entry : header.tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->second.begin < b->second.begin; });
  const File file = File::open(path, O_RDONLY);
  SafetensorsFile result;
  result.metadata = header.metadata;
  uint64_t hash = 0;
  for (const auto* tensor : order) {
    const auto& [name, entry] = *tensor;
    result.tensors.emplace(
        name,
        SafetensorsFile::Tensor{entry.shape, read_values(file, path, header, name, entry, hash)});
  }
  // Files of other programs carry no hash.
  if (!named_hash(header).empty()) require_hash(path, header, hash);
  return result;
}

std::map<std::string, std::string> read_safetensors_metadata(const std::filesystem::path& path) {
  return read_safetensors_header(path).metadata;
}

std::string describe_safetensors(const std::filesystem::path& path) {
  return nlohmann::ordered_json::parse(read_safetensors_header(path).json).dump(2);
}

}  // namespace smalltalk
