// Checksums of all that lies in an HDF5 file of the suite.
#include "data/hdf5_file.hpp"

#include <fmt/format.h>

#include <numeric>
#include <thread>

#include "damage.hpp"
#include "data/mapped_dataset.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_writer.hpp"

namespace smalltalk {
namespace {

using namespace test;

constexpr int64_t kPiece = int64_t{1} << 20;

std::string bytes_of(const auto& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0])};
}

// Where the bytes of a dataset lie, so that a test can damage exactly one.
void flip(const std::filesystem::path& path, const std::string& dataset, int64_t byte) {
  const int64_t offset = Hdf5File::open(path).contiguous_offset(dataset) + byte;
  std::string bytes = read_text(path);
  bytes[static_cast<size_t>(offset)] = static_cast<char>(bytes[static_cast<size_t>(offset)] ^ 4);
  write_bytes(path, bytes);
}

// 2.5 pieces of float64, written in two parts.
std::vector<double> write_doubles(const std::filesystem::path& path, const std::string& format) {
  std::vector<double> values(static_cast<size_t>(kPiece / 8 * 5 / 2));
  std::iota(values.begin(), values.end(), -0.5);
  Hdf5File file = Hdf5File::create(path, path);
  if (!format.empty()) file.write_format(format);
  const auto size = static_cast<int64_t>(values.size());
  file.create_dataset<double>("x", size);
  const std::span<const double> all = values;
  file.write_at<double>("x", 0, all.first(1000));
  file.write_at<double>("x", 1000, all.subspan(1000));
  file.close();
  return values;
}

TEST(Hdf5File, EqualChecksumsHoweverADatasetWasWritten) {
  const TemporaryFolder folder;
  const std::vector<double> values = write_doubles(folder / "a.h5", "test");
  Hdf5File file = Hdf5File::create(folder / "b.h5", folder / "b.h5");
  file.write_format("test");
  file.write<double>("x", values);
  file.write<double>("none", std::vector<double>{});
  file.close();
  const Hdf5File a = Hdf5File::open(folder / "a.h5");
  const Hdf5File b = Hdf5File::open(folder / "b.h5");
  EXPECT_EQ(a.shape("x_xxh3"), std::vector<int64_t>{3});
  EXPECT_EQ(a.read<double>("x"), values);
  EXPECT_EQ(a.checksums("x"), b.checksums("x"));
  const std::span<const double> all = values;
  for (size_t i = 0; i < 3; ++i) {
    const size_t first = i * kPiece / 8;
    const auto piece = all.subspan(first, std::min<size_t>(kPiece / 8, all.size() - first));
    EXPECT_EQ(hash_bytes(std::as_bytes(piece)), fmt::format("{:016x}", a.checksums("x")[i]));
  }
  EXPECT_TRUE(b.read<double>("none").empty());
}

TEST(Hdf5File, ASliceReadsAndVerifiesTheTouchedPiecesOnly) {
  const TemporaryFolder folder;
  const auto path = folder / "a.h5";
  const std::vector<double> values = write_doubles(path, "test");
  flip(path, "x", kPiece + 80'000);  // element 10000 of the second piece
  const int64_t piece = kPiece / 8;
  const auto slice = [&](int64_t first, int64_t count) {
    std::vector<double> out(static_cast<size_t>(count));
    Hdf5File::open(path).read_slice<double>("x", first, out);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), values.begin() + first));
  };
  slice(0, piece);
  slice(17, 3);
  slice(2 * piece, piece / 2);
  slice(2 * piece + 5, 1);
  const std::string place = "a.h5: /x is damaged near element " + std::to_string(piece);
  EXPECT_TRUE(mentions(complaint_of([&] { slice(piece - 1, 2); }), place));
  EXPECT_TRUE(mentions(complaint_of([&] { slice(piece, 1); }), place));
  EXPECT_TRUE(mentions(complaint_of([&] { slice(2 * piece - 1, 1); }), place));
  EXPECT_TRUE(mentions(complaint_of([&] { Hdf5File::open(path).read<double>("x"); }), place));
  for (const auto& [first, count] :
       {std::pair{-1, 1}, {5 * piece / 2, 1}, {5 * piece / 2 - 1, 2}}) {
    std::vector<double> out(static_cast<size_t>(count));
    EXPECT_TRUE(mentions(
        complaint_of([&] { Hdf5File::open(path).read_slice<double>("x", first, out); }), "rows"));
  }
}

TEST(Hdf5File, SlicesOfMoreDimensionsAreRows) {
  const TemporaryFolder folder;
  constexpr int64_t kRows = 1000;
  constexpr int64_t kRow = 777;  // rows lie across the pieces' borders
  std::vector<float> values(kRows * kRow);
  std::iota(values.begin(), values.end(), 1.0f);
  Hdf5File file = Hdf5File::create(folder / "a.h5", folder / "a.h5");
  file.write_format("test");
  file.write<float>("x", values, {kRows, kRow});
  file.write<float>("planes", values, {10, kRows / 10, kRow});
  file.close();
  const Hdf5File read = Hdf5File::open(folder / "a.h5");
  for (const int64_t first : {0, 1, 336, 337, 338, 500, 996}) {
    std::vector<float> out(4 * kRow);
    read.read_slice<float>("x", first, out);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), values.begin() + first * kRow)) << first;
  }
  std::vector<float> plane(kRows / 10 * kRow);
  read.read_slice<float>("planes", 7, plane);
  EXPECT_TRUE(std::equal(plane.begin(), plane.end(), values.begin() + 700 * kRow));
  std::vector<float> half(kRow / 2);
  EXPECT_TRUE(mentions(complaint_of([&] { read.read_slice<float>("x", 0, half); }), "rows"));
}

TEST(Hdf5File, OnlyTheVeryTypeIsTaken) {
  const TemporaryFolder folder;
  write_doubles(folder / "a.h5", "test");
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  std::vector<float> out(1);
  EXPECT_TRUE(mentions(complaint_of([&] { file.read<float>("x"); }), "type"));
  EXPECT_TRUE(mentions(complaint_of([&] { file.read_slice<float>("x", 0, out); }), "type"));
  EXPECT_TRUE(mentions(complaint_of([&] { file.read<uint64_t>("x"); }), "type"));
}

TEST(MappedDataset, VerifiesAPieceWhenItIsFirstTouched) {
  const TemporaryFolder folder;
  const auto path = folder / "a.h5";
  const std::vector<double> values = write_doubles(path, "test");
  flip(path, "x", 2 * kPiece);
  const MappedDataset mapped(Hdf5File::open(path), "x");
  const int64_t piece = kPiece / 8;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int64_t first = 0; first < 2 * piece; first += 1000) {
        const int64_t count = std::min<int64_t>(1000, 2 * piece - first);
        const auto part = mapped.values<double>(first, count);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), values.begin() + first));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 2; ++i) {  // not only the first time
    EXPECT_TRUE(mentions(complaint_of([&] { mapped.values<double>(2 * piece - 1, 2); }),
                         "a.h5: /x is damaged near element " + std::to_string(2 * piece)));
  }
}

std::filesystem::path write_tokens(const std::filesystem::path& path, int64_t num_tokens,
                                   int64_t vocab_size = 500) {
  TokenFileInfo info;
  info.num_tokens = num_tokens;
  info.num_documents = 2;
  info.vocab_size = vocab_size;
  info.tokenizer_hash = "abc";
  info.text_bytes = 1234;
  std::vector<std::string> domains = {"unknown", "a"};
  domains.resize(100, "domain");
  TokenWriter writer(path, path, info, domains);
  std::vector<uint32_t> tokens(static_cast<size_t>(num_tokens));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint32_t>(i * 7 % 500);
  writer.add_tokens(tokens);
  writer.add_documents(std::vector<uint64_t>{4, static_cast<uint64_t>(num_tokens)},
                       std::vector<uint16_t>{1, 0});
  writer.add_text("source_hash", "xyz");
  writer.add_list("bad_examples", {"one", "two"});
  for (int i = 0; i < 8; ++i) writer.add_integer("number " + std::to_string(i), i);
  writer.finish();
  return path;
}

std::string all_of_tokens(const std::filesystem::path& path) {
  const TokenFile file(path);
  std::vector<int64_t> tokens(static_cast<size_t>(file.info().num_tokens));
  file.read(0, tokens);
  const Domains domains = read_domains(path);
  std::string names;
  for (const std::string& name : domains.names) names += name + ",";
  return bytes_of(tokens) + bytes_of(file.document_ends()) + bytes_of(domains.of_document) +
         bytes_of(domains.document_ends) + names + file.info().content_hash +
         file.info().tokenizer_hash + std::to_string(file.info().text_bytes) + describe_hdf5(path);
}

TEST(Damage, OfATokenFileIsNoticed) {
  const TemporaryFolder folder;
  expect_damage_is_noticed(write_tokens(folder / "a.h5", 100), all_of_tokens);
  expect_damage_is_noticed(write_tokens(folder / "b.h5", 1'300'000, 70'000), all_of_tokens, 90'001);
}

TEST(Damage, OfAShardFileIsNoticed) {
  const TemporaryFolder folder;
  const auto all = [](const std::filesystem::path& path) {
    const Shards shards = read_shards(path);
    std::string text = bytes_of(shards.expert) + bytes_of(shards.offsets) +
                       bytes_of(shards.sequences) + bytes_of(shards.chunk);
    for (const auto& [name, value] : shards.provenance) text += name + "=" + value + ";";
    for (int64_t e = 0; e < 4; ++e) text += bytes_of(read_shard(path, e));
    return text + describe_hdf5(path);  // the rule, too
  };
  const std::vector<uint16_t> assignment = {2, 0, 2, 1, 0, 2};
  const std::vector<uint64_t> chunk = {3, 10, 11, 40, 41, 99};
  const Provenance provenance = {{"seed", "7"}, {"tokens", "äöü"}, {"empty", ""}};
  write_shards(folder / "s.h5", make_shards(assignment, 4, {}, provenance));
  expect_damage_is_noticed(folder / "s.h5", all);
  const AssignmentRule rule = {
      AssignmentMethod::margin, {2, 1, 3, 1}, {{2, {7, 3}}, {0, {8, 3}}}, {0, 1, 2, 3}};
  write_shards(folder / "r.h5", make_shards(assignment, 4, chunk, provenance, rule, 1));
  expect_damage_is_noticed(folder / "r.h5", all, 7);
}

TEST(Damage, OfAScoreFileIsNoticed) {
  const TemporaryFolder folder;
  const auto all = [](const std::filesystem::path& path) {
    Provenance provenance;
    const ScoreMatrix scores = read_scores(path, &provenance);
    std::string text = std::to_string(scores.num_experts()) + bytes_of(scores.values());
    for (const auto& [name, value] : provenance) text += name + "=" + value + ";";
    const ScoreFile file(path);
    text += bytes_of(file.rows(2, 3).blocks[0].values);
    return text + describe_hdf5(path);
  };
  ScoreMatrix scores(9, 3);
  for (size_t i = 0; i < 27; ++i) scores.values()[i] = -0.1f * static_cast<float>(i);
  write_scores(folder / "s.h5", scores, {{"routers", "abc"}, {"seed", "7"}});
  expect_damage_is_noticed(folder / "s.h5", all);
}

}  // namespace
}  // namespace smalltalk
