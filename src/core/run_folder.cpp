#include "smalltalk/core/run_folder.hpp"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <vector>

#include "file.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

void create_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw_system_error("create the folder", folder, error.value());
  if (!fs::is_directory(folder)) throw_system_error("create the folder", folder, ENOTDIR);
}

// Beside its target, so that the rename stays on one file system; hidden, so that no pattern
// catches it; with the target's ending last, for writers that look at it. Host and process keep
// the ranks of a job apart on a shared file system, the counter the threads of a process.
fs::path temporary_name(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host = {"host"};
  return folder_of(path) / (".tmp-" + std::string(host.data()) + "-" + std::to_string(::getpid()) +
                            "-" + std::to_string(counter++) + "-" + path.filename().string());
}

// Removes what a failed writer left, unless it was renamed away.
class TemporaryFile {
 public:
  explicit TemporaryFile(const fs::path& target) : path_(temporary_name(target)) {}
  ~TemporaryFile() {
    std::error_code ignored;
    if (!renamed_) fs::remove_all(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const fs::path& path() const { return path_; }
  void rename_to(const fs::path& target) {
    if (::rename(path_.c_str(), target.c_str()) != 0) throw_system_error("write", target, errno);
    renamed_ = true;
  }

 private:
  fs::path path_;
  bool renamed_ = false;
};

}  // namespace

void write_atomically(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  if (!path.has_filename()) throw Error("'" + path.string() + "' is not the name of a file");
  create_folder(folder_of(path));
  TemporaryFile temporary(path);
  write(temporary.path());
  if (!fs::exists(temporary.path())) {
    throw Error("internal error: nothing was written for '" + path.string() + "'");
  }
  // Data first, then the name: after a crash of the machine a name must not stand for an empty
  // file.
  File file = File::open(temporary.path(), O_RDONLY);
  file.flush();
  file.close();
  temporary.rename_to(path);
  File::open(folder_of(path), O_RDONLY | O_DIRECTORY).flush();
}

void write_text_atomically(const fs::path& path, std::string_view text) {
  write_atomically(path, [&](const fs::path& temporary) {
    try {
      File file = File::open(temporary, O_WRONLY | O_CREAT | O_TRUNC);
      file.write(text);
      file.close();
    } catch (const Error& error) {
      throw Error("cannot write '" + path.string() + "': " + error.what());
    }
  });
}

void publish_link(const fs::path& link, const fs::path& target) {
  TemporaryFile temporary(link);
  const fs::path relative = target.lexically_relative(folder_of(link));
  if (::symlink(relative.c_str(), temporary.path().c_str()) != 0) {
    throw_system_error("create a link at", link, errno);
  }
  temporary.rename_to(link);
  File::open(folder_of(link), O_RDONLY | O_DIRECTORY).flush();
}

std::string read_text(const fs::path& path) {
  const File file = File::open(path, O_RDONLY);
  std::string text;
  std::vector<char> buffer(size_t{1} << 16);
  while (const size_t count = file.read(buffer)) text.append(buffer.data(), count);
  return text;
}

void require_writable(const fs::path& folder) {
  create_folder(folder);
  const TemporaryFile probe(folder / "probe");
  try {
    File file = File::open(probe.path(), O_WRONLY | O_CREAT | O_TRUNC);
    file.write("probe");
    file.close();
  } catch (const Error& error) {
    throw Error("the folder '" + folder.string() + "' cannot be written to: " + error.what());
  }
}

bool claim(const fs::path& path, std::string_view owner) {
  create_folder(folder_of(path));
  File file = File::create_exclusively(path);
  if (!file.is_open()) return false;
  try {
    file.write(std::string(owner) + "\n");
    file.flush();
    file.close();
  } catch (const Error&) {
    ::unlink(path.c_str());  // or nobody would ever do the work
    throw;
  }
  return true;
}

}  // namespace smalltalk
