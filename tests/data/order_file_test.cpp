// Orders of documents, and tokens that are read in one.
#include "smalltalk/data/order_file.hpp"

#include <algorithm>
#include <cmath>

#include "damage.hpp"
#include "data/hdf5_file.hpp"
#include "files.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/data/token_writer.hpp"
#include "smalltalk/data/vector_file.hpp"

namespace smalltalk {
namespace {

using namespace test;

// Documents of 1 to 9 tokens, all tokens different.
std::vector<std::vector<int64_t>> make_documents(uint64_t count) {
  std::vector<std::vector<int64_t>> documents;
  int64_t token = 0;
  for (uint64_t d = 0; d < count; ++d) {
    auto& document = documents.emplace_back();
    for (uint64_t i = 0; i <= derive_seed(1, "length", d) % 9; ++i) document.push_back(token++);
  }
  return documents;
}

std::filesystem::path write_documents(const std::filesystem::path& path,
                                      const std::vector<std::vector<int64_t>>& documents) {
  std::vector<uint32_t> tokens;
  std::vector<uint64_t> ends;
  for (const auto& document : documents) {
    for (const int64_t token : document) tokens.push_back(static_cast<uint32_t>(token));
    ends.push_back(tokens.size());
  }
  TokenFileInfo info;
  info.num_tokens = std::ssize(tokens);
  info.num_documents = std::ssize(documents);
  info.vocab_size = 60'000;
  info.tokenizer_hash = "abc";
  TokenWriter writer(path, path, info, {"unknown"});
  writer.add_tokens(tokens);
  writer.add_documents(ends, std::vector<uint16_t>(ends.size(), 0));
  writer.finish();
  return path;
}

std::vector<uint64_t> shuffled(uint64_t count, uint64_t seed) {
  const Permutation order(count, seed);
  std::vector<uint64_t> documents;
  for (uint64_t i = 0; i < count; ++i) documents.push_back(order(i));
  return documents;
}

class OrderFile : public ::testing::Test {
 protected:
  DocumentOrder order_of(const std::vector<uint64_t>& documents) const {
    write_order(folder_ / "order.h5", documents,
                {{"tokens", TokenFile(path_).info().content_hash}});
    return read_order(folder_ / "order.h5");
  }

  TemporaryFolder folder_;
  const std::vector<std::vector<int64_t>> documents_ = make_documents(300);
  const std::filesystem::path path_ = write_documents(folder_ / "tokens.h5", documents_);
};

TEST_F(OrderFile, TokensAreThoseOfTheDocumentsOneBehindTheOther) {
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const std::vector<uint64_t> order = shuffled(documents_.size(), seed);
    std::vector<int64_t> expected;
    std::vector<uint64_t> ends;
    for (const uint64_t d : order) {
      expected.insert(expected.end(), documents_[d].begin(), documents_[d].end());
      ends.push_back(expected.size());
    }
    const TokenFile tokens(path_, order_of(order));
    EXPECT_TRUE(tokens.is_reordered());
    EXPECT_EQ(tokens.info().num_tokens, std::ssize(expected));
    EXPECT_EQ(tokens.document_ends(), ends);
    for (const size_t size : {size_t{0}, size_t{1}, size_t{7}, size_t{32}, expected.size()}) {
      for (size_t first = 0; first + size <= expected.size(); ++first) {
        std::vector<int64_t> read(size);
        tokens.read(static_cast<int64_t>(first), read);
        ASSERT_TRUE(std::equal(read.begin(), read.end(),
                               expected.begin() + static_cast<std::ptrdiff_t>(first)))
            << size << " tokens from " << first;
      }
    }
    std::vector<int64_t> two(2);
    EXPECT_NE(complaint_of([&] { tokens.read(std::ssize(expected) - 1, two); }), "");
  }
}

TEST_F(OrderFile, IsAnotherTextThanThatOfTheFile) {
  const TokenFile plain(path_);
  const TokenFile one(path_, order_of(shuffled(documents_.size(), 1)));
  const TokenFile other(path_, order_of(shuffled(documents_.size(), 2)));
  const std::string size = std::to_string(plain.info().num_tokens);
  EXPECT_NE(one.info().content_hash, other.info().content_hash);
  EXPECT_TRUE(extends(one, one.info().content_hash, size));
  EXPECT_FALSE(extends(one, plain.info().content_hash, size));
  EXPECT_FALSE(extends(one, other.info().content_hash, size));
}

TEST_F(OrderFile, OfOtherTokensIsRefused) {
  const DocumentOrder order = order_of(shuffled(documents_.size(), 1));
  const auto others = make_documents(299);
  const auto path = write_documents(folder_ / "others.h5", others);
  EXPECT_TRUE(mentions(complaint_of([&] { TokenFile(path, order); }), "from other tokens"));
}

TEST_F(OrderFile, DamageIsNoticed) {
  order_of(shuffled(documents_.size(), 1));
  expect_damage_is_noticed(folder_ / "order.h5", [](const std::filesystem::path& path) {
    const DocumentOrder order = read_order(path);
    std::string all = order.content_hash;
    for (const uint64_t document : order.documents) all += " " + std::to_string(document);
    for (const auto& [name, value] : order.provenance) all += " " + name + "=" + value;
    return all;
  });
  EXPECT_TRUE(mentions(complaint_of([&] { read_order(path_); }), "tokens.h5"));
}

TEST_F(OrderFile, NamesEachDocumentOnce) {
  const auto path = folder_ / "twice.h5";
  Hdf5File file = Hdf5File::create(path, path);
  file.write_format("smalltalk order");
  file.write_text_attribute("content_hash", "abc");
  file.write<uint64_t>("documents", std::vector<uint64_t>{0, 2, 2});
  file.close();
  EXPECT_TRUE(mentions(complaint_of([&] { read_order(path); }), "each document once"));
}

TEST(VectorFile, IsReadAsAnyProgramWritesIt) {
  const TemporaryFolder folder;
  const auto write = [&](const std::string& dataset, const std::vector<float>& values) {
    Hdf5File file = Hdf5File::create(folder / "v.h5", folder / "v.h5");
    file.write<float>(dataset, values, {3, 2});
    file.close();
    return folder / "v.h5";
  };
  const auto path = write("vectors", {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(read_vector_info(path).num_vectors, 3);
  EXPECT_EQ(read_vector_info(path).dimensions, 2);
  EXPECT_EQ(read_vectors(path, 1, 2), (std::vector<float>{3, 4, 5, 6}));
  EXPECT_TRUE(read_vectors(path, 3, 0).empty());
  write("vectors", {1, 2, 3, NAN, 5, 6});
  EXPECT_TRUE(mentions(complaint_of([&] { read_vectors(path, 0, 3); }), "vector 1 is not finite"));
  write("scores", {1, 2, 3, 4, 5, 6});
  EXPECT_TRUE(mentions(complaint_of([&] { read_vector_info(path); }), "/vectors"));
}

}  // namespace
}  // namespace smalltalk
