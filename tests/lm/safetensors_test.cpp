// The safetensors format: round trips, and a reader that believes nothing.
#include "smalltalk/lm/model/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "fixtures.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

void write_raw(const std::filesystem::path& path, const std::string& header,
               const std::string& data) {
  std::ofstream file(path, std::ios::binary);
  const uint64_t length = header.size();
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << header << data;
}

TEST(SafetensorsTest, RoundTrip) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "deep/a.safetensors";
  const std::vector<float> matrix = {1, -2, 3.5F, 0, 1e-30F, 1e30F}, scalar = {7};
  write_safetensors(path, {{"m", {{2, 3}, matrix}}, {"s", {{}, scalar}}, {"e", {{0, 4}, {}}}},
                    {{"step", "12"}});
  const SafetensorsFile file = read_safetensors(path);
  EXPECT_EQ(file.tensors.at("m").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file.tensors.at("m").values, matrix);
  EXPECT_EQ(file.tensors.at("s").values, scalar);
  EXPECT_TRUE(file.tensors.at("e").values.empty());
  EXPECT_EQ(file.metadata.at("format"), "pt");
  EXPECT_EQ(file.metadata.at("step"), "12");
  EXPECT_NE(describe_safetensors(path).find("data_offsets"), std::string::npos);
  uint64_t length = 0;
  std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(&length), 8);
  EXPECT_EQ(length % 8, 0U);
}

TEST(SafetensorsTest, ReadsHalfTypes) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "h.safetensors";
  const uint16_t values[] = {0x3F80, 0xC049, 0x3C00, 0x0001, 0xFC00};
  write_raw(path,
            R"({"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
            R"("h":{"dtype":"F16","shape":[3],"data_offsets":[4,10]}})",
            std::string(reinterpret_cast<const char*>(values), sizeof(values)));
  const SafetensorsFile file = read_safetensors(path);
  EXPECT_EQ(file.tensors.at("b").values, (std::vector<float>{1.0F, -3.140625F}));
  EXPECT_EQ(file.tensors.at("h").values, (std::vector<float>{1.0F, 0x1p-24F, -INFINITY}));
}

TEST(SafetensorsTest, RefusesBrokenHeaders) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const std::string data(16, '\0');
  const auto tensor = [](const std::string& name, const std::string& shape,
                         const std::string& offsets) {
    return "\"" + name + R"(":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}";
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"overlap", "{" + tensor("a", "[3]", "[0,12]") + "," + tensor("b", "[2]", "[8,16]") + "}"},
      {"hole", "{" + tensor("a", "[1]", "[0,4]") + "," + tensor("b", "[2]", "[8,16]") + "}"},
      {"begins late", "{" + tensor("a", "[3]", "[4,16]") + "}"},
      {"ends early", "{" + tensor("a", "[3]", "[0,12]") + "}"},
      {"ends late", "{" + tensor("a", "[5]", "[0,20]") + "}"},
      {"size", "{" + tensor("a", "[3]", "[0,16]") + "}"},
      {"overflow", "{" + tensor("a", "[4294967296,4294967296]", "[0,16]") + "}"},
      {"overflow of one extent", "{" + tensor("a", "[18446744073709551615]", "[0,16]") + "}"},
      {"overflow beside a zero", R"({"a":{"dtype":"BOOL","shape":[9223372036854775807,2,0],)"
                                 R"("data_offsets":[0,0]},)" +
                                     tensor("b", "[4]", "[0,16]") + "}"},
      {"deep", "{\"a\":" + std::string(100'000, '[')},
      {"deep metadata", "{\"__metadata__\":" + std::string(100'000, '[')},
      {"negative extent", "{" + tensor("a", "[-4]", "[0,16]") + "}"},
      {"fraction", "{" + tensor("a", "[4.0]", "[0,16]") + "}"},
      {"backwards", "{" + tensor("a", "[4]", "[16,0]") + "}"},
      {"three offsets", "{" + tensor("a", "[4]", "[0,16,16]") + "}"},
      {"duplicate", "{" + tensor("a", "[4]", "[0,16]") + "," + tensor("a", "[4]", "[0,16]") + "}"},
      {"unknown type", R"({"a":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}})"},
      {"missing key", R"({"a":{"dtype":"F32","data_offsets":[0,16]}})"},
      {"metadata", R"({"__metadata__":{"a":1},)" + tensor("a", "[4]", "[0,16]") + "}"},
      {"array", "[1,2]"},
      {"not JSON", "{\"a\":"},
      {"empty", ""}};
  for (const auto& [name, header] : cases) {
    write_raw(path, header, data);
    EXPECT_THROW(read_safetensors(path), Error) << name;
  }
  write_raw(path, "{" + tensor("a", "[4]", "[0,16]") + "}", data);
  EXPECT_NO_THROW(read_safetensors(path));
  EXPECT_THROW(read_safetensors(folder.path() / "missing"), Error);
}

// Names are anybody's text, and an Error is one line.
TEST(SafetensorsTest, NamesAreQuotedWithoutTheirControlBytes) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  write_raw(path, R"({"a\u000a\u001b[31m)" + std::string(10'000, 'x') + R"(":{"dtype":"F32"}})",
            "");
  try {
    read_safetensors(path);
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("a\\x0a\\x1b[31mxxx"), std::string::npos) << text;
    EXPECT_LT(text.size(), 1000u);
  }
}

// Every truncation is refused; random damage is refused or gives tensors that fit their shapes.
TEST(SafetensorsTest, SurvivesDamage) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const std::vector<float> values = {1, 2, 3, 4};
  write_safetensors(path, {{"a", {{4}, values}}, {"b", {{2, 2}, values}}}, {{"k", "v"}});
  const std::string whole = read_text(path);
  for (size_t size = 0; size < whole.size(); ++size) {
    std::ofstream(path, std::ios::binary) << whole.substr(0, size);
    EXPECT_THROW(read_safetensors(path), Error) << size;
  }
  std::mt19937 generator(5);
  for (int i = 0; i < 500; ++i) {
    std::string damaged = whole;
    for (unsigned k = 0; k < 1 + generator() % 3; ++k) {
      damaged[generator() % damaged.size()] = static_cast<char>(generator());
    }
    std::ofstream(path, std::ios::binary) << damaged;
    try {
      for (const auto& [name, tensor] : read_safetensors(path).tensors) {
        int64_t size = 1;
        for (int64_t extent : tensor.shape) size *= extent;
        EXPECT_EQ(size, static_cast<int64_t>(tensor.values.size()));
      }
    } catch (const Error&) {
    }
  }
}

// The hash by its description in the header, byte by byte.
TEST(SafetensorsTest, TheHashIsWhatTheHeaderSays) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const auto values = random_floats(1000, 3);
  write_safetensors(path, {{"b", {{10, 100}, values}}, {"a", {{1}, std::span(values).first(1)}}},
                    {{"x", "\"xxh3\":\"0\""}});
  std::string bytes = read_text(path);
  const std::string named = read_safetensors_metadata(path).at("xxh3");
  ASSERT_EQ(named.size(), 16U);
  const size_t place = bytes.find(named);
  ASSERT_EQ(bytes.find(named, place + 1), std::string::npos);
  bytes.replace(place, named.size(), std::string(16, '0'));
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  const std::string start = bytes.substr(0, 8 + length), data = bytes.substr(8 + length);
  ASSERT_EQ(data.size(), 4004U);
  uint64_t sum = std::stoull(hash_text(start), nullptr, 16);
  for (size_t i = 0; i < data.size(); i += 4) {
    sum += additive_hash(std::as_bytes(std::span(data).subspan(i, 4)), i / 4);
  }
  EXPECT_EQ(named, hex_digits(sum));
}

TEST(SafetensorsTest, EveryFlippedBitIsFound) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const std::vector<float> values = {1, -2, 0, 0, 3e-30F};
  write_safetensors(path, {{"a", {{5}, values}}, {"b", {{1}, std::span(values).first(1)}}},
                    {{"step", "12"}});
  const std::string whole = read_text(path);
  // With another key for the hash, the file is one of another program.
  const size_t key = whole.find("xxh3");
  for (size_t byte = 0; byte < whole.size(); ++byte) {
    if (byte >= key && byte < key + 4) continue;
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = whole;
      damaged[byte] = static_cast<char>(damaged[byte] ^ 1 << bit);
      std::ofstream(path, std::ios::binary) << damaged;
      EXPECT_THROW(read_safetensors(path), Error) << "bit " << bit << " of byte " << byte;
    }
  }
}

}  // namespace
}  // namespace smalltalk
