// What the tests of data share: compressed files, a small corpus.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/core/system/error.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"
#include "support/write_bytes.hpp"

namespace smalltalk::test {

std::filesystem::path write_gzip(const std::filesystem::path& path, std::string_view bytes);
// With a checksum, as the program zstd writes.
std::filesystem::path write_zstd(const std::filesystem::path& path, std::string_view bytes);
// `count` times '0', in little memory.
std::filesystem::path gzip_of_zeros(const std::filesystem::path& path, int64_t count);
std::filesystem::path zstd_of_zeros(const std::filesystem::path& path, int64_t count);

// Documents of made-up words, deterministic; enough for a vocabulary of 400.
std::vector<std::string> made_up_documents(int count, uint64_t seed = 1);
std::string json_lines(const std::vector<std::string>& texts, const std::string& domain = {});

}  // namespace smalltalk::test
