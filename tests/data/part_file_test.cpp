// Part files are what `prepare` goes on from after a crash.
#include "data/part_file.hpp"

#include "files.hpp"
#include "smalltalk/core/system/files.hpp"

namespace smalltalk {
namespace {

using namespace test;

class PartFile : public testing::Test {
 protected:
  void SetUp() override {
    const auto text = write_bytes(folder_ / "a.jsonl", json_lines(made_up_documents(300), "zoo"));
    train_tokenizer({text.string()}, 300, 100'000, folder_ / "tokenizer.model");
    const auto some = write_bytes(
        folder_ / "b.jsonl", json_lines({"ka to", "mi"}, "zoo") + "broken\n" + json_lines({"x"}));
    const auto size = static_cast<int64_t>(std::filesystem::file_size(some));
    const std::vector<InputPart> parts = {{0, 0, size}};
    write_part(folder_ / "part", {some}, parts, {}, Tokenizer(folder_ / "tokenizer.model"));
    whole_ = read_text(folder_ / "part");
  }

  // All that it gives; "" for "not there".
  static std::string read_all(const std::filesystem::path& part) {
    const auto info = read_part_info(part);
    if (!info) return "";
    require_whole(part, *info);
    std::string text = std::to_string(info->num_tokens) + " " +
                       std::to_string(info->num_documents) + " " +
                       std::to_string(info->text_bytes) + " " +
                       std::to_string(info->bad.documents) + " " + std::to_string(info->bad.bad());
    for (const std::string& domain : info->domains) text += " " + domain;
    for (const std::string& example : info->bad.examples) text += " " + example;
    const size_t content = static_cast<size_t>(info->num_tokens * 2 + info->num_documents * 12);
    return text + read_text(part).substr(0, content);
  }

  TemporaryFolder folder_;
  std::string whole_;
};

TEST_F(PartFile, EveryBitCounts) {
  const std::string expected = read_all(folder_ / "part");
  ASSERT_NE(expected, "");
  std::string bytes = whole_;
  for (size_t i = 0; i < 8 * whole_.size(); ++i) {
    bytes[i / 8] = static_cast<char>(bytes[i / 8] ^ (1 << i % 8));
    const auto part = write_bytes(folder_ / "bad", bytes);
    std::string read;
    const std::string complaint = complaint_of([&] { read = read_all(part); });
    EXPECT_EQ(read, "") << "bit " << i;
    if (!complaint.empty()) {  // then the next run does not find it
      EXPECT_TRUE(mentions(complaint, "bad: was damaged"));
      EXPECT_FALSE(std::filesystem::exists(part)) << "bit " << i;
    }
    bytes[i / 8] = whole_[i / 8];
  }
}

TEST_F(PartFile, ACutOneIsNotThere) {
  for (size_t size = 0; size < whole_.size(); ++size) {
    write_bytes(folder_ / "bad", std::string_view(whole_).substr(0, size));
    EXPECT_FALSE(read_part_info(folder_ / "bad")) << size;
    write_bytes(folder_ / "bad", std::string_view(whole_).substr(whole_.size() - size));
    EXPECT_FALSE(read_part_info(folder_ / "bad")) << size;
  }
}

}  // namespace
}  // namespace smalltalk
