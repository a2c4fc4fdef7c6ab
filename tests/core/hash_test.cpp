#include "smalltalk/core/system/hash.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

TEST(Hash, IsXxh3) {
  // Published test values of XXH3_64bits with seed 0: the empty input, and "a".
  EXPECT_EQ(hash_text(""), "2d06800538d394c2");
  EXPECT_EQ(hash_text("a"), "e6c632b61e964e1f");
}

TEST(Hash, OfBytesTextAndFileAgree) {
  const TemporaryFolder folder;
  std::string text(3'000'000, 'x');  // more than one buffer
  text[2'500'000] = 'y';
  write_text_atomically(folder / "a", text);
  EXPECT_EQ(hash_file(folder / "a"), hash_text(text));
  EXPECT_EQ(hash_bytes(std::as_bytes(std::span(text))), hash_text(text));
  text[2'500'000] = 'x';
  EXPECT_NE(hash_file(folder / "a"), hash_text(text));
  EXPECT_THROW(hash_file(folder / "missing"), Error);
}

TEST(Hasher, OfPiecesIsThatOfTheWhole) {
  const std::string text(100'000, 'x');
  Hasher hasher;
  for (size_t at = 0; at < text.size(); at += 777) {
    hasher.update(
        std::as_bytes(std::span(text).subspan(at, std::min<size_t>(777, text.size() - at))));
  }
  EXPECT_EQ(hasher.digest(), hash_text(text));
}

// XXH3 of a word with a seed, by its specification (inputs of 4 to 8 bytes), with the two words of
// its secret that it takes.
uint64_t xxh3_of_word(uint32_t word, uint64_t seed) {
  const auto rotated = [](uint64_t value, int bits) {
    return value << bits | value >> (64 - bits);
  };
  uint64_t swapped = 0;  // the seed's lower half, bytes in the other order
  for (int i = 0; i < 4; ++i) swapped = swapped << 8 | (seed >> (8 * i) & 0xFF);
  const uint64_t secret = 0x1CAD21F72C81017CULL ^ 0xDB979083E96DD4DEULL;
  uint64_t hash = (word | uint64_t{word} << 32) ^ (secret - (seed ^ swapped << 32));
  hash ^= rotated(hash, 49) ^ rotated(hash, 24);
  hash *= 0x9FB21C651E98DF25ULL;
  hash ^= (hash >> 35) + 4;
  hash *= 0x9FB21C651E98DF25ULL;
  return hash ^ hash >> 28;
}

std::vector<uint32_t> some_words(size_t count) {
  std::mt19937 generator(3);
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) word = generator() % 5 == 0 ? 0 : static_cast<uint32_t>(generator());
  return words;
}

TEST(AdditiveHash, IsTheSumOverWordsWithTheirIndices) {
  EXPECT_EQ(additive_hash({}), 0U);
  const std::vector<uint32_t> words = some_words(1000);
  const uint64_t first = (uint64_t{1} << 32) - 500;  // both halves of the seed change
  uint64_t sum = 0;
  for (size_t i = 0; i < words.size(); ++i) sum += xxh3_of_word(words[i], first + i);
  EXPECT_EQ(additive_hash(std::as_bytes(std::span(words)), first), sum);

  const std::string text = "abcdefg";  // the last word is a part of one
  EXPECT_EQ(additive_hash(std::as_bytes(std::span(text))),
            xxh3_of_word(0x64636261, 0) + xxh3_of_word(0x00676665, 1));
}

TEST(AdditiveHash, OfPartsInAnyOrderAddsUpToThatOfTheWhole) {
  const std::vector<uint32_t> words = some_words(5000);
  const auto bytes = std::as_bytes(std::span(words)).first(19'999);
  std::mt19937 generator(4);
  for (int i = 0; i < 50; ++i) {
    std::vector<size_t> borders = {0, words.size()};
    for (size_t k = generator() % 20; k > 0; --k) borders.push_back(generator() % words.size());
    std::ranges::sort(borders);
    std::vector<size_t> parts(borders.size() - 1);
    std::iota(parts.begin(), parts.end(), size_t{0});
    std::ranges::shuffle(parts, generator);
    uint64_t sum = 0;
    for (const size_t part : parts) {
      const size_t begin = 4 * borders[part], end = std::min(4 * borders[part + 1], bytes.size());
      sum += additive_hash(bytes.subspan(begin, end - begin), borders[part]);
    }
    ASSERT_EQ(sum, additive_hash(bytes));
  }
}

// Words that change places, or lie elsewhere, are other contents.
TEST(AdditiveHash, TellsWhereWordsLie) {
  const std::vector<uint32_t> words = {7, 7, 8, 0, 0};
  std::set<uint64_t> seen;
  std::vector<uint32_t> order = words;
  std::ranges::sort(order);
  size_t count = 0;
  do {
    seen.insert(additive_hash(std::as_bytes(std::span(order))));
    ++count;
  } while (std::ranges::next_permutation(order).found);
  EXPECT_EQ(seen.size(), count);
  EXPECT_NE(additive_hash(std::as_bytes(std::span(words)), 1),
            additive_hash(std::as_bytes(std::span(words)), 0));
}

// Hashing may not be what a checkpoint waits for. Loose: test machines are slow and busy.
TEST(AdditiveHash, IsFast) {
  const std::vector<uint32_t> words(size_t{1} << 24, 1);
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const double start = now_seconds();
    const uint64_t hash = additive_hash(std::as_bytes(std::span(words)));
    const double seconds = now_seconds() - start;
    EXPECT_NE(hash, 0U);
    best = std::max(best, 4e-9 * static_cast<double>(words.size()) / seconds);
  }
  std::printf("%.2f GB/s\n", best);
  EXPECT_GT(best, 0.05);
}

}  // namespace
}  // namespace smalltalk
