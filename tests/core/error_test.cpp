#include "smalltalk/core/system/error.hpp"

#include <gtest/gtest.h>

namespace smalltalk {
namespace {

TEST(Printable, SpellsOutControlBytesAndKeepsText) {
  EXPECT_EQ(printable("größe 😀"), "größe 😀");
  EXPECT_EQ(printable(std::string_view("a\n\0\x1b[31m\x7f", 9)), "a\\x0a\\x00\\x1b[31m\\x7f");
}

TEST(Printable, CutsBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "ü";
  const std::string shown = printable(text);
  EXPECT_EQ(shown, text.substr(0, 200) + "...");
  EXPECT_EQ(printable("x" + text), "x" + text.substr(0, 200) + "...");
  EXPECT_LT(printable(std::string(5000, '\x80')).size(), 210u);
}

}  // namespace
}  // namespace smalltalk
