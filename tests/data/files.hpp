// What the tests of data share: a temporary folder, files in it, a small corpus.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/run_folder.hpp"

namespace smalltalk::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "data_test_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error(name + ": cannot be created");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::filesystem::path write_bytes(const std::filesystem::path& path,
                                         std::string_view bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<long>(bytes.size()));
  return path;
}

std::filesystem::path write_gzip(const std::filesystem::path& path, std::string_view bytes);
// With a checksum, as the program zstd writes.
std::filesystem::path write_zstd(const std::filesystem::path& path, std::string_view bytes);
// `count` times '0', in little memory.
std::filesystem::path gzip_of_zeros(const std::filesystem::path& path, int64_t count);
std::filesystem::path zstd_of_zeros(const std::filesystem::path& path, int64_t count);

// Documents of made-up words, deterministic; enough for a vocabulary of 400.
std::vector<std::string> made_up_documents(int count, uint64_t seed = 1);
std::string json_lines(const std::vector<std::string>& texts, const std::string& domain = {});

// What `f` complains about; empty if it does not.
template <typename F>
std::string complaint_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

inline testing::AssertionResult mentions(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "no '" << part << "' in '" << text << "'";
}

}  // namespace smalltalk::test
