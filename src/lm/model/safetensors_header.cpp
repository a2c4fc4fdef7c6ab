#include "lm/model/safetensors_header.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr int kMaxDepth = 3;                       // {"tensor": {"shape": [
constexpr const char* kHashKey = "xxh3";
const std::string kNoHash(16, '0');  // in its place while the hash is taken

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw Error("'" + path.string() + "' is not a valid safetensors file: " + what);
}

uint64_t bytes_per_value(const std::filesystem::path& path, const std::string& dtype) {
  static const std::map<std::string, uint64_t> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  const auto found = sizes.find(dtype);
  if (found == sizes.end()) fail(path, "unknown type '" + printable(dtype) + "'");
  return found->second;
}

// The parser keeps the last of two equal keys; the format forbids them, and a reader that is
// lenient here can be shown other weights than the next one.
json parse_without_duplicates(const std::filesystem::path& path, const std::string& text) {
  std::vector<std::set<std::string>> open;
  const auto callback = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth) fail(path, "its header is nested too deeply");
    if (event == json::parse_event_t::object_start) open.emplace_back();
    if (event == json::parse_event_t::object_end && !open.empty()) open.pop_back();
    if (event == json::parse_event_t::key && !open.back().insert(value.get<std::string>()).second) {
      fail(path, "duplicate key '" + printable(value.get<std::string>()) + "'");
    }
    return true;
  };
  try {
    return json::parse(text, callback);
  } catch (const json::exception& error) {
    fail(path, "its header is not JSON (" + printable(error.what()) + ")");
  }
}

uint64_t unsigned_number(const std::filesystem::path& path, const json& value) {
  if (!value.is_number_unsigned()) fail(path, "a size or offset is not a whole number");
  return value.get<uint64_t>();
}

SafetensorsEntry parse_entry(const std::filesystem::path& path, const std::string& name,
                             const json& value) {
  SafetensorsEntry entry;
  const auto well_formed = [&] {
    return value.is_object() && value.size() == 3 && value.contains("dtype") &&
           value["dtype"].is_string() && value.contains("shape") && value["shape"].is_array() &&
           value.contains("data_offsets") && value["data_offsets"].is_array() &&
           value["data_offsets"].size() == 2;
  };
  if (!well_formed())
    fail(path, "tensor '" + printable(name) + "' needs dtype, shape and data_offsets");
  entry.dtype = value["dtype"].get<std::string>();
  entry.begin = unsigned_number(path, value["data_offsets"][0]);
  entry.end = unsigned_number(path, value["data_offsets"][1]);
  // Of the extents but for zeros, so that who multiplies them in any order is safe.
  int64_t product = static_cast<int64_t>(bytes_per_value(path, entry.dtype));
  bool is_empty = false;
  for (const json& item : value["shape"]) {
    const uint64_t extent = unsigned_number(path, item);
    is_empty = is_empty || extent == 0;
    if (__builtin_mul_overflow(product, std::max<uint64_t>(extent, 1), &product)) {
      fail(path, "the shape of '" + printable(name) + "' overflows");
    }
    entry.shape.push_back(static_cast<int64_t>(extent));
  }
  const uint64_t bytes = is_empty ? 0 : static_cast<uint64_t>(product);
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    fail(path, "the offsets of '" + printable(name) + "' do not fit its shape");
  }
  return entry;
}

void check_contiguous(const std::filesystem::path& path, const SafetensorsHeader& header,
                      uint64_t data_bytes) {
  std::vector<const SafetensorsEntry*> order;
  for (const auto& [name, entry] : header.tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t at = 0;
  for (const SafetensorsEntry* entry : order) {
    if (entry->begin != at) fail(path, "its tensors overlap or leave a hole");
    at = entry->end;
  }
  if (at != data_bytes) {
    fail(path, "its header announces " + std::to_string(at) + " bytes of data, but it holds " +
                   std::to_string(data_bytes) + " (half-written?)");
  }
}

// Where the hash stands in the JSON; npos if there is none. Quotes inside strings have a backslash
// before them.
size_t place_of_hash(const SafetensorsHeader& header) {
  const std::string entry = '"' + std::string(kHashKey) + "\":\"";
  const size_t at = header.json.find(entry + named_hash(header) + '"');
  return at == std::string::npos ? at : at + entry.size();
}

}  // namespace

uint64_t SafetensorsHeader::data_bytes() const {
  uint64_t end = 0;
  for (const auto& [name, entry] : tensors) end = std::max(end, entry.end);
  return end;
}

std::string SafetensorsHeader::bytes() const {
  const uint64_t length = json.size();
  std::string text(reinterpret_cast<const char*>(&length), sizeof(length));
  return text + json;
}

SafetensorsHeader make_safetensors_header(const std::map<std::string, std::vector<int64_t>>& shapes,
                                          const std::map<std::string, std::string>& metadata) {
  SafetensorsHeader header;
  header.metadata = metadata;
  header.metadata["format"] = "pt";
  header.metadata[kHashKey] = kNoHash;
  nlohmann::ordered_json json;
  json["__metadata__"] = {{"format", "pt"}, {kHashKey, kNoHash}};
  for (const auto& [key, value] : header.metadata) json["__metadata__"][key] = value;
  uint64_t offset = 0;
  for (const auto& [name, shape] : shapes) {
    ST_CHECK(name != "__metadata__");
    uint64_t end = sizeof(float);
    for (const int64_t extent : shape) end *= static_cast<uint64_t>(extent);
    end += offset;
    header.tensors.emplace(name, SafetensorsEntry{"F32", shape, offset, end});
    json[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  header.json = json.dump();
  header.json.resize((header.json.size() + 7) / 8 * 8, ' ');  // data then begins on a multiple of 8
  header.data_begin = sizeof(uint64_t) + header.json.size();
  return header;
}

std::string named_hash(const SafetensorsHeader& header) {
  const auto found = header.metadata.find(kHashKey);
  return found == header.metadata.end() ? "" : found->second;
}

uint64_t hash_position(const SafetensorsHeader& header) {
  const size_t at = place_of_hash(header);
  ST_CHECK(at != std::string::npos);
  return sizeof(uint64_t) + at;
}

std::string hash_with_data(const SafetensorsHeader& header, uint64_t data_hash) {
  std::string start = header.bytes();
  const size_t at = place_of_hash(header);
  if (at != std::string::npos) {
    start.replace(sizeof(uint64_t) + at, named_hash(header).size(), kNoHash);
  }
  Hasher hasher;
  hasher.update(std::as_bytes(std::span(start)));
  return hex_digits(hasher.value() + data_hash);
}

void require_hash(const std::filesystem::path& path, const SafetensorsHeader& header,
                  uint64_t data_hash) {
  const std::string named = named_hash(header);
  if (named == hash_with_data(header, data_hash)) return;
  if (named.empty())
    throw Error("'" + path.string() + "' has no hash: this program did not write it so");
  throw Error("'" + path.string() + "' is damaged: its bytes do not have the hash " +
              printable(named) + " that it was written with");
}

SafetensorsHeader read_safetensors_header(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("cannot open '" + path.string() + "'");
  file.seekg(0, std::ios::end);
  const auto file_bytes = static_cast<uint64_t>(std::max<std::streamoff>(0, file.tellg()));
  file.seekg(0);
  std::array<unsigned char, 8> prefix{};
  if (file_bytes < 8 || !file.read(reinterpret_cast<char*>(prefix.data()), 8)) {
    fail(path, "it is shorter than 8 bytes");
  }
  uint64_t length = 0;  // little-endian
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[static_cast<size_t>(i)];
  if (length > kMaxHeaderBytes || length > file_bytes - 8) {
    fail(path, "its header of " + std::to_string(length) + " bytes does not fit");
  }
  SafetensorsHeader header;
  header.json.resize(length);
  if (!file.read(header.json.data(), static_cast<std::streamsize>(length))) {
    throw Error("cannot read '" + path.string() + "'");
  }
  header.data_begin = 8 + length;
  if (header.json.empty() || header.json[0] != '{') fail(path, "its header is not JSON");
  const json parsed = parse_without_duplicates(path, header.json);
  for (const auto& [name, value] : parsed.items()) {
    if (name != "__metadata__") {
      header.tensors.emplace(name, parse_entry(path, name, value));
      continue;
    }
    if (!value.is_object()) fail(path, "__metadata__ is not an object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) fail(path, "__metadata__ holds something other than strings");
      header.metadata.emplace(key, text.get<std::string>());
    }
  }
  check_contiguous(path, header, file_bytes - header.data_begin);
  return header;
}

}  // namespace smalltalk
