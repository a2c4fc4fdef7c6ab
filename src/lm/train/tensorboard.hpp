// TensorBoard's event files, written without its libraries. A file is a row of records: length
// (u64), masked CRC-32C of the length (u32), an Event in protobuf's wire format, its masked
// CRC-32C (u32); numbers little-endian. The first Event holds the version "brain.Event:2".
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace smalltalk {

// Castagnoli's polynomial.
uint32_t crc32c(std::string_view bytes);

using Scalars = std::vector<std::pair<std::string, double>>;  // tag, value

class TensorBoardWriter {
 public:
  // Creates folder/events.out.tfevents.<unix seconds>.<host>. TensorBoard forgets points of steps
  // beyond `step` in older files of the folder: those steps are done again.
  TensorBoardWriter(const std::filesystem::path& folder, int64_t step);
  // Values become float32. `time` in unix seconds. Error: disk full.
  void write(int64_t step, double time, const Scalars& scalars);

 private:
  std::filesystem::path path_;
};

}  // namespace smalltalk
