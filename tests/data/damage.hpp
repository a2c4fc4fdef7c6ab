// What readers owe to damaged files: an Error that names the file, or what an undamaged one gives
// (the damage lay in padding). Never other values, a crash, or lines of the HDF5 library.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>

#include "files.hpp"
#include "smalltalk/core/system/files.hpp"

namespace smalltalk::test {

using ReadAll = std::function<std::string(const std::filesystem::path&)>;  // all that it gives

// Whether it was noticed.
inline bool expect_noticed(const std::filesystem::path& path, const ReadAll& read_all,
                           const std::string& expected, const std::string& what) {
  try {
    EXPECT_TRUE(read_all(path) == expected) << what << " gives other values";
    return false;
  } catch (const Error& error) {
    EXPECT_TRUE(mentions(error.what(), path.filename().string())) << what;
    return true;
  }
}

// Flips a bit of every `step`-th byte (few parts of HDF5 structures are shorter than 3), then cuts
// the file at about 100 places.
inline void expect_damage_is_noticed(const std::filesystem::path& path, const ReadAll& read_all,
                                     size_t step = 3) {
  const std::string whole = read_text(path);
  const std::string expected = read_all(path);
  const std::filesystem::path bad = path.parent_path() / "bad.h5";
  testing::internal::CaptureStderr();
  std::string bytes = whole;
  int errors = 0;
  for (size_t i = 0; i < bytes.size(); i += step) {
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i / step % 8)));
    write_bytes(bad, bytes);
    errors += expect_noticed(bad, read_all, expected, "a bit of byte " + std::to_string(i));
    bytes[i] = whole[i];
  }
  EXPECT_GT(errors, 0);
  for (size_t size = 0; size < whole.size(); size += std::max<size_t>(whole.size() / 100, 1)) {
    write_bytes(bad, std::string_view(whole).substr(0, size));
    EXPECT_TRUE(mentions(complaint_of([&] { read_all(bad); }), "bad.h5")) << "cut at " << size;
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace smalltalk::test
