#include "smalltalk/data/token_file.hpp"

#include <algorithm>

#include "data/hdf5_file.hpp"
#include "files.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/data/token_writer.hpp"

namespace smalltalk {
namespace {

using namespace test;

// A token file of `vocab_size` ids whose documents end every 10 tokens.
std::filesystem::path write_token_file(const std::filesystem::path& path, int64_t vocab_size,
                                       int64_t num_tokens) {
  TokenFileInfo info;
  info.num_tokens = num_tokens;
  info.num_documents = (num_tokens + 9) / 10;
  info.vocab_size = vocab_size;
  info.tokenizer_hash = "abc";
  info.text_bytes = 1234;
  TokenWriter writer(path, path, info, {"unknown", "a"});
  std::vector<uint32_t> tokens;
  for (int64_t i = 0; i < num_tokens; ++i) {
    tokens.push_back(static_cast<uint32_t>((i * 7919 + vocab_size - 1) % vocab_size));
  }
  const std::span<const uint32_t> all = tokens;
  writer.add_tokens(all.subspan(0, all.size() / 3));
  writer.add_tokens(all.subspan(all.size() / 3));
  std::vector<uint64_t> ends;
  for (int64_t i = 0; i < info.num_documents; ++i) {
    ends.push_back(static_cast<uint64_t>(std::min((i + 1) * 10, num_tokens)));
  }
  writer.add_documents(ends, std::vector<uint16_t>(ends.size(), 1));
  writer.finish();
  return path;
}

template <typename T>
void expect_mapping_equals_hdf5(const std::filesystem::path& path) {
  const TokenFile file(path);
  const std::vector<T> stored = Hdf5File::open(path).read<T>("tokens");
  std::vector<int64_t> mapped(stored.size());
  file.read(0, mapped);
  EXPECT_TRUE(std::equal(stored.begin(), stored.end(), mapped.begin(), mapped.end()));
  std::vector<int64_t> part(5);
  file.read(17, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), mapped.begin() + 17));
  EXPECT_EQ(file.info().content_hash, hash_bytes(std::as_bytes(std::span(stored))));
  EXPECT_EQ(file.info().token_bytes, static_cast<int64_t>(sizeof(T)));
}

TEST(TokenFile, TwoBytesUpToAVocabularyOf65536AndFourBeyond) {
  const TemporaryFolder folder;
  expect_mapping_equals_hdf5<uint16_t>(write_token_file(folder / "a.h5", 65536, 1003));
  expect_mapping_equals_hdf5<uint32_t>(write_token_file(folder / "b.h5", 65537, 1003));
  expect_mapping_equals_hdf5<uint32_t>(write_token_file(folder / "c.h5", 300'000, 1003));
}

TEST(TokenFile, SaysWhatItHolds) {
  const TemporaryFolder folder;
  const TokenFile file(write_token_file(folder / "a.h5", 500, 101));
  EXPECT_EQ(file.info().num_tokens, 101);
  EXPECT_EQ(file.info().num_documents, 11);
  EXPECT_EQ(file.info().vocab_size, 500);
  EXPECT_EQ(file.info().text_bytes, 1234);
  EXPECT_EQ(file.info().tokenizer_hash, "abc");
  EXPECT_EQ(file.document_ends().back(), 101u);
  EXPECT_EQ(file.num_sequences(10), 10);  // the last target needs a token of its own
  EXPECT_EQ(file.num_sequences(101), 0);
}

TEST(TokenFile, RecognisesAGrownFile) {
  const TemporaryFolder folder;
  const TokenFile old(write_token_file(folder / "a.h5", 500, 700'000));
  const TokenFile grown(write_token_file(folder / "b.h5", 500, 700'001));
  EXPECT_EQ(old.hash_of_first(700'000), old.info().content_hash);
  EXPECT_EQ(grown.hash_of_first(700'000), old.info().content_hash);
  EXPECT_NE(grown.hash_of_first(699'999), old.info().content_hash);
  EXPECT_EQ(grown.hash_of_first(0), hash_text(""));
  EXPECT_TRUE(mentions(complaint_of([&] { old.hash_of_first(700'001); }), "a.h5"));
}

TEST(TokenFile, RefusesReadsOutsideOfIt) {
  const TemporaryFolder folder;
  const TokenFile file(write_token_file(folder / "a.h5", 500, 100));
  std::vector<int64_t> out(11);
  EXPECT_TRUE(mentions(complaint_of([&] { file.read(90, out); }), "a.h5"));
  EXPECT_TRUE(mentions(complaint_of([&] { file.read(-1, out); }), "a.h5"));
}

TEST(TokenFile, RefusesMissingForeignAndTruncatedFiles) {
  const TemporaryFolder folder;
  const auto open = [](const std::filesystem::path& path) {
    return complaint_of([&] { TokenFile file(path); });
  };
  EXPECT_TRUE(mentions(open(folder / "none.h5"), "no such file"));
  EXPECT_TRUE(mentions(open(write_bytes(folder / "text.h5", "not HDF5 at all")), "not an HDF5"));
  const std::string whole = read_text(write_token_file(folder / "a.h5", 500, 10'000));
  for (const size_t size : {whole.size() - 1, whole.size() / 2, size_t{600}}) {
    const auto cut = write_bytes(folder / "cut.h5", std::string_view(whole).substr(0, size));
    EXPECT_TRUE(mentions(open(cut), "truncated")) << size;
    EXPECT_TRUE(mentions(open(cut), "cut.h5")) << size;
  }
}

TEST(TokenFile, RefusesAnotherFormatOrVersion) {
  const TemporaryFolder folder;
  const auto write = [&](const std::string& format, int64_t version) {
    Hdf5File file = Hdf5File::create(folder / "a.h5", folder / "a.h5");
    if (!format.empty()) file.write_text_attribute("format", format);
    file.write_integer_attribute("version", version);
    file.close();
    return complaint_of([&] { TokenFile tokens(folder / "a.h5"); });
  };
  EXPECT_TRUE(mentions(write("", 2), "not a file of this suite"));
  EXPECT_TRUE(mentions(write("smalltalk shards", 2), "smalltalk shards"));
  EXPECT_TRUE(mentions(write("smalltalk tokens", 1), "version 1"));
  EXPECT_TRUE(mentions(write("smalltalk tokens", 3), "version 3"));
}

TEST(TokenFile, TheWriterRefusesTokensOutsideOfTheVocabulary) {
  const TemporaryFolder folder;
  TokenFileInfo info;
  info.num_tokens = 2;
  info.num_documents = 1;
  info.vocab_size = 10;
  TokenWriter writer(folder / "a.h5", folder / "a.h5", info, {"unknown"});
  const std::vector<uint32_t> tokens = {9, 10};
  EXPECT_TRUE(mentions(complaint_of([&] { writer.add_tokens(tokens); }), "token 10"));
}

TEST(Domains, ASequenceHasTheDomainOfMostOfItsTokens) {
  Domains domains;
  domains.names = {"unknown", "a", "b"};
  domains.of_document = {1, 2, 1, 0};
  domains.document_ends = {3, 10, 15, 21};
  // Tokens of sequences of 5: aaabb bbbbb aaaaa 00000
  EXPECT_EQ(sequence_domains(domains, 4, 5), (std::vector<uint16_t>{1, 2, 1, 0}));
  // Sequences of 6: aaabbb ties to a; bbbbaa; aaa000 ties to unknown.
  EXPECT_EQ(sequence_domains(domains, 3, 6), (std::vector<uint16_t>{1, 2, 0}));
}

TEST(Domains, ThousandsOfNamesFit) {
  const TemporaryFolder folder;
  TokenFileInfo info;
  info.num_tokens = 1;
  info.num_documents = 1;
  info.vocab_size = 10;
  std::vector<std::string> names = {"unknown"};
  for (int i = 0; i < 20'000; ++i) names.push_back("domain é " + std::to_string(i));
  TokenWriter writer(folder / "a.h5", folder / "a.h5", info, names);
  writer.add_tokens(std::vector<uint16_t>{2});
  writer.add_documents(std::vector<uint64_t>{1}, std::vector<uint16_t>{20'000});
  writer.finish();
  const Domains domains = read_domains(folder / "a.h5");
  EXPECT_EQ(domains.names, names);
  EXPECT_EQ(domains.of_document, std::vector<uint16_t>{20'000});
}

}  // namespace
}  // namespace smalltalk
