#include "smalltalk/lm/safetensors.hpp"

#include <bit>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "safetensors_header.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/core/run_folder.hpp"

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

void read_bytes(std::ifstream& file, const std::filesystem::path& path, void* out, size_t bytes) {
  if (!file.read(static_cast<char*>(out), static_cast<std::streamsize>(bytes))) {
    throw Error("cannot read '" + path.string() + "': it ended early");
  }
}

std::vector<float> read_values(std::ifstream& file, const std::filesystem::path& path,
                               const std::string& name, const SafetensorsEntry& entry) {
  const size_t bytes = entry.end - entry.begin;
  if (entry.dtype == "F32") {
    std::vector<float> values(bytes / 4);
    read_bytes(file, path, values.data(), bytes);
    return values;
  }
  if (entry.dtype != "BF16" && entry.dtype != "F16") {
    throw Error("'" + path.string() + "': tensor '" + name + "' has type " + entry.dtype +
                "; only F32, BF16 and F16 are read");
  }
  std::vector<uint16_t> halves(bytes / 2);
  read_bytes(file, path, halves.data(), bytes);
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
  header["__metadata__"]["format"] = "pt";
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    int64_t size = 1;
    for (int64_t extent : tensor.shape) size *= extent;
    ST_CHECK(size == static_cast<int64_t>(tensor.values.size()) && name != "__metadata__");
    const uint64_t end = offset + tensor.values.size_bytes();
    header[name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data then begins on a multiple of 8

  write_atomically(path, [&](const std::filesystem::path& temporary) {
    std::ofstream file(temporary, std::ios::binary);
    const uint64_t length = text.size();
    file.write(reinterpret_cast<const char*>(&length), 8);
    file.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const auto& [name, tensor] : tensors) {
      file.write(reinterpret_cast<const char*>(tensor.values.data()),
                 static_cast<std::streamsize>(tensor.values.size_bytes()));
    }
    file.close();
    if (!file) throw Error("cannot write '" + path.string() + "': is the disk full?");
  });
}

SafetensorsFile read_safetensors(const std::filesystem::path& path) {
  const SafetensorsHeader header = read_safetensors_header(path);
  std::ifstream file(path, std::ios::binary);
  SafetensorsFile result;
  result.metadata = header.metadata;
  for (const auto& [name, entry] : header.tensors) {
    file.seekg(static_cast<std::streamoff>(header.data_begin + entry.begin));
    result.tensors.emplace(
        name, SafetensorsFile::Tensor{entry.shape, read_values(file, path, name, entry)});
  }
  return result;
}

std::string describe_safetensors(const std::filesystem::path& path) {
  return nlohmann::ordered_json::parse(read_safetensors_header(path).json).dump(2);
}

}  // namespace smalltalk
