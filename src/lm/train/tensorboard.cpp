#include "lm/train/tensorboard.hpp"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>

#include "smalltalk/core/system/files.hpp"

namespace smalltalk {
namespace {

std::string little_endian(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return text;
}

uint32_t masked_crc(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xA282EAD8U; }

// Fields of a protobuf message, by type of the value.

std::string varint(uint64_t value) {
  std::string text;
  for (; value >= 0x80; value >>= 7) text.push_back(static_cast<char>((value & 0x7F) | 0x80));
  text.push_back(static_cast<char>(value));
  return text;
}

std::string key(uint64_t field, uint64_t wire_type) { return varint(field << 3 | wire_type); }

std::string integer_field(uint64_t field, int64_t value) {
  return key(field, 0) + varint(static_cast<uint64_t>(value));
}

std::string double_field(uint64_t field, double value) {
  return key(field, 1) + little_endian(std::bit_cast<uint64_t>(value), 8);
}

std::string float_field(uint64_t field, float value) {
  return key(field, 5) + little_endian(std::bit_cast<uint32_t>(value), 4);
}

std::string bytes_field(uint64_t field, const std::string& bytes) {
  return key(field, 2) + varint(bytes.size()) + bytes;
}

// Event: wall_time 1, step 2, file_version 3, summary 5, session_log 7.
std::string event(double time, int64_t step) {
  return double_field(1, time) + integer_field(2, step);
}

std::string record(const std::string& event) {
  const std::string length = little_endian(event.size(), 8);
  return length + little_endian(masked_crc(length), 4) + event +
         little_endian(masked_crc(event), 4);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> result{};
    for (uint32_t i = 0; i < result.size(); ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78U : 0);
      result[i] = crc;
    }
    return result;
  }();
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder, int64_t step) {
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  const double time = std::chrono::duration<double>(since_epoch).count();
  std::array<char, 256> host{};
  if (gethostname(host.data(), host.size() - 1) != 0) host = {"localhost"};
  create_folder(folder);
  const std::string name =
      "events.out.tfevents." + std::to_string(static_cast<int64_t>(time)) + "." + host.data();
  path_ = folder / name;
  for (int i = 1; std::filesystem::exists(path_); ++i) {  // started twice within a second
    path_ = folder / (name + "." + std::to_string(i));
  }
  // A session log of status START (field 1, value 1): points from its step on are forgotten.
  append_text(path_, record(double_field(1, time) + bytes_field(3, "brain.Event:2")) +
                         record(event(time, step + 1) + bytes_field(7, integer_field(1, 1))));
}

void TensorBoardWriter::write(int64_t step, double time, const Scalars& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    summary += bytes_field(1, bytes_field(1, tag) + float_field(2, static_cast<float>(value)));
  }
  append_text(path_, record(event(time, step) + bytes_field(5, summary)));
}

}  // namespace smalltalk
