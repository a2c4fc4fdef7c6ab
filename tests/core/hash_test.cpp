#include "smalltalk/core/system/hash.hpp"

#include <gtest/gtest.h>

#include <algorithm>

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

}  // namespace
}  // namespace smalltalk
