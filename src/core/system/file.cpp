#include "smalltalk/core/system/file.hpp"

#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

void throw_system_error(const std::string& action, const std::filesystem::path& path, int error) {
  throw SystemError("cannot " + action + " '" + path.string() +
                    "': " + std::generic_category().message(error));
}

File::File(int descriptor, std::filesystem::path path)
    : descriptor_(descriptor), path_(std::move(path)) {}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

File::~File() {
  if (is_open()) ::close(descriptor_);
}

File File::open(const std::filesystem::path& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_system_error("open", path, errno);
  return {descriptor, path};
}

File File::create_exclusively(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0 && errno != EEXIST) throw_system_error("create", path, errno);
  return {descriptor, path};
}

size_t File::read(std::span<char> buffer) const {
  while (true) {
    const ssize_t count = ::read(descriptor_, buffer.data(), buffer.size());
    if (count >= 0) return static_cast<size_t>(count);
    if (errno != EINTR) throw_system_error("read", path_, errno);
  }
}

void File::write(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t count = ::write(descriptor_, text.data(), text.size());
    if (count >= 0) {
      text.remove_prefix(static_cast<size_t>(count));
    } else if (errno != EINTR) {
      throw_system_error("write", path_, errno);
    }
  }
}

void File::read_at(uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t count =
        ::pread(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count == 0) throw Error("cannot read '" + path_.string() + "': it ended early");
    if (count > 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
      offset += static_cast<uint64_t>(count);
    } else if (errno != EINTR) {
      throw_system_error("read", path_, errno);
    }
  }
}

void File::write_at(uint64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t count =
        ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
      offset += static_cast<uint64_t>(count);
    } else if (errno != EINTR) {
      throw_system_error("write", path_, errno);
    }
  }
}

void File::resize(uint64_t bytes) const {
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) {
    throw_system_error("write", path_, errno);
  }
}

void File::flush() const {
  // Some file systems cannot flush a folder and say EINVAL; then there is nothing to do.
  if (::fsync(descriptor_) != 0 && errno != EINVAL) throw_system_error("flush", path_, errno);
}

void File::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0) throw_system_error("close", path_, errno);
}

}  // namespace smalltalk
