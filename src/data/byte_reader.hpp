// Bytes of a file as they come: plain, .gz (any number of members) or .zst (any number of frames).
// Private to src/data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace smalltalk {

// Fills a part of the buffer and returns how much; 0 at the end. Throws Error naming the file if
// it cannot be read, or if a compressed stream is damaged or ends too early.
using ByteReader = std::function<size_t(std::span<char>)>;

inline constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

std::string lower_extension(const std::filesystem::path& path);  // ".gz", of a.GZ, too

enum class Compression { none, gzip, zstd };
Compression compression_of(const std::filesystem::path& path);  // by the file's name

// `offset`: where to begin; REQUIRES 0 for compressed files. `padded`, if given, becomes true when
// zeros are found behind a compressed stream, which other programs skip, too.
ByteReader open_bytes(const std::filesystem::path& path, int64_t offset = 0,
                      bool* padded = nullptr);

// The longest text that a reader takes into memory as one: 256 MiB, and for large files 64 times
// the file. What unpacks to more is a decompression bomb, for which refuse_bomb() throws the Error.
size_t max_document_bytes(const std::filesystem::path& path);
[[noreturn]] void refuse_bomb(const std::filesystem::path& path, size_t max_bytes);

}  // namespace smalltalk
