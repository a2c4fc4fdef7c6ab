// Event files, read back by a reader of the format that shares only the checksum with the writer.
#include "lm/train/tensorboard.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <set>

#include "fixtures.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

TEST(Crc32cTest, AgreesWithPublishedValues) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  // RFC 3720, B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43U);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending.push_back(c);
  EXPECT_EQ(crc32c(ascending), 0x46DD794EU);
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  bool done() const { return at_ == bytes_.size(); }

  std::string_view take(size_t size) {
    if (size > bytes_.size() - at_) throw std::runtime_error("the bytes end too early");
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  template <typename T>
  T number() {  // this machine is little-endian
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = number<uint8_t>();
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
  }
  std::string_view record() {
    const std::string_view length = take(8);
    expect_crc(length);
    const std::string_view data = take(Reader(length).number<uint64_t>());
    expect_crc(data);
    return data;
  }

 private:
  void expect_crc(std::string_view data) {
    const uint32_t masked = number<uint32_t>();
    const uint32_t rotated = masked - 0xA282EAD8U;
    EXPECT_EQ(rotated >> 17 | rotated << 15, crc32c(data));
  }
  std::string_view bytes_;
  size_t at_ = 0;
};

struct Event {
  double time = 0;
  int64_t step = 0;
  std::string version;
  std::map<std::string, float> scalars;
  int session_status = 0;
};

Event parse(std::string_view bytes) {
  Event event;
  Reader fields(bytes);
  while (!fields.done()) {
    switch (fields.varint()) {  // field << 3 | wire type
      case 1 << 3 | 1:
        event.time = fields.number<double>();
        break;
      case 2 << 3 | 0:
        event.step = static_cast<int64_t>(fields.varint());
        break;
      case 3 << 3 | 2:
        event.version = fields.take(fields.varint());
        break;
      case 5 << 3 | 2: {
        Reader values(fields.take(fields.varint()));
        while (!values.done()) {
          EXPECT_EQ(values.varint(), 1U << 3 | 2);
          Reader value(values.take(values.varint()));
          EXPECT_EQ(value.varint(), 1U << 3 | 2);
          const std::string tag(value.take(value.varint()));
          EXPECT_EQ(value.varint(), 2U << 3 | 5);
          event.scalars[tag] = value.number<float>();
          EXPECT_TRUE(value.done());
        }
        break;
      }
      case 7 << 3 | 2: {
        Reader session(fields.take(fields.varint()));
        EXPECT_EQ(session.varint(), 1U << 3 | 0);
        event.session_status = static_cast<int>(session.varint());
        EXPECT_TRUE(session.done());
        break;
      }
      default:
        throw std::runtime_error("unknown field");
    }
  }
  return event;
}

TEST(TensorBoardTest, WhatIsWrittenIsReadBack) {
  const TemporaryFolder folder;
  {
    TensorBoardWriter writer(folder.path() / "tensorboard", 300);
    writer.write(301, 1700000000.25, {{"loss", 1.5}, {"mfu(%)", 40}});
    // A tag whose length takes two bytes as a varint.
    writer.write(1LL << 40, 1700000001, {{std::string(200, 'x'), -1e30}});
  }
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "tensorboard")) {
    files.push_back(entry.path());
  }
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(files[0].filename().string().rfind("events.out.tfevents.1", 0), 0U);
  const std::string bytes = read_text(files[0]);
  // How every event file begins: a record of 24 bytes, its checksum, a double in field 1.
  EXPECT_EQ(bytes.substr(0, 13), std::string("\x18\0\0\0\0\0\0\0\xA3\x7F\x4B\x22\x09", 13));

  Reader reader(bytes);
  const Event first = parse(reader.record());
  EXPECT_EQ(first.version, "brain.Event:2");
  EXPECT_GT(first.time, 1.7e9);
  const Event start = parse(reader.record());
  EXPECT_EQ(start.session_status, 1);
  EXPECT_EQ(start.step, 301);
  const Event a = parse(reader.record());
  EXPECT_EQ(a.step, 301);
  EXPECT_EQ(a.time, 1700000000.25);
  EXPECT_EQ(a.scalars, (std::map<std::string, float>{{"loss", 1.5F}, {"mfu(%)", 40.0F}}));
  const Event b = parse(reader.record());
  EXPECT_EQ(b.step, 1LL << 40);
  EXPECT_EQ(b.scalars, (std::map<std::string, float>{{std::string(200, 'x'), -1e30F}}));
  EXPECT_TRUE(reader.done());
}

TEST(TensorBoardTest, EveryStartHasItsFile) {
  const TemporaryFolder folder;
  for (int i = 0; i < 3; ++i) TensorBoardWriter(folder.path(), i);
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    names.insert(entry.path().filename());
  }
  EXPECT_EQ(names.size(), 3U);
}

}  // namespace
}  // namespace smalltalk
