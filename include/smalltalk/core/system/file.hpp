// A POSIX file descriptor with errors that name the path. Streams of the standard library report
// neither the system's reason nor a failed flush. Files of a run are written by files.hpp.
#pragma once

#include <fcntl.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace smalltalk {

// Throws Error "cannot <action> '<path>': <the system's reason>" for an errno.
[[noreturn]] void throw_system_error(const std::string& action, const std::filesystem::path& path,
                                     int error);

class File {
 public:
  static File open(const std::filesystem::path& path, int flags);
  // Creates the file; returns a closed File if it exists already.
  static File create_exclusively(const std::filesystem::path& path);
  ~File();
  File(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  File& operator=(File&&) = delete;

  bool is_open() const { return descriptor_ >= 0; }
  size_t read(std::span<char> buffer) const;  // 0 at the end of the file
  void write(std::string_view text) const;    // all of it
  // All of `bytes`, `offset` bytes after the beginning, wherever others read and write. Error: the
  // file ends before.
  void read_at(uint64_t offset, std::span<std::byte> bytes) const;
  void write_at(uint64_t offset, std::span<const std::byte> bytes) const;
  void resize(uint64_t bytes) const;  // what is new is zeros
  void flush() const;                 // to the disk
  void close();                       // reports errors that a network file system kept back

 private:
  File(int descriptor, std::filesystem::path path);
  int descriptor_;
  std::filesystem::path path_;
};

}  // namespace smalltalk
