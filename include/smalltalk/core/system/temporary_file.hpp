// The name under which a file stands beside its place until it is whole. For writers that need more
// than write_atomically() (files.hpp), as several processes that write one file: one of them takes
// the name, creates the file and tells the others.
#pragma once

#include <filesystem>
#include <string>

namespace smalltalk {

class TemporaryFile {
 public:
  // Takes a name that nobody else has. Creates nothing.
  explicit TemporaryFile(std::filesystem::path target);
  // By the name that another process has taken.
  TemporaryFile(std::filesystem::path target, std::filesystem::path path);
  // Removes what is there, unless it has its name or is left to another process.
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::filesystem::path& target() const { return target_; }
  const std::filesystem::path& path() const { return path_; }
  // Renames the file, whose data is flushed, to its target, and flushes the folder.
  void publish();
  // The process that has taken the name publishes or removes the file.
  void leave() { is_left_ = true; }

 private:
  std::filesystem::path target_, path_;
  bool is_left_ = false;
};

// The folder that a file lies in.
std::filesystem::path folder_of(const std::filesystem::path& path);

// Whether a file has a temporary name whose process, of this machine, is gone, though its number
// may have come back, or which nobody has touched for a day.
bool is_stale_temporary(const std::filesystem::path& file);

}  // namespace smalltalk
