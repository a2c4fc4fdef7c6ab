#include "smalltalk/core/system/temporary_file.hpp"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "smalltalk/core/system/file.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

std::string host_name() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) return "host";
  return host.data();
}

const std::string kTemporary = ".tmp-";

// Beside its target, so that the rename stays on one file system; hidden, so that no pattern
// catches it; with the target's ending last, for writers that look at it. Host and process keep
// the ranks of a job apart on a shared file system, the counter the threads of a process.
fs::path temporary_name(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  return folder_of(path) / (kTemporary + host_name() + "-" + std::to_string(::getpid()) + "-" +
                            std::to_string(counter++) + "-" + path.filename().string());
}

}  // namespace

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

bool is_stale_temporary(const fs::path& file) {
  const std::string name = file.filename().string();
  if (!name.starts_with(kTemporary)) return false;
  const std::string ours = kTemporary + host_name() + "-";
  if (name.starts_with(ours)) {
    const int process = std::atoi(name.c_str() + ours.size());
    if (process > 0) return ::kill(process, 0) != 0 && errno == ESRCH;
  }
  std::error_code error;
  const auto age = fs::file_time_type::clock::now() - fs::last_write_time(file, error);
  return !error && age > std::chrono::hours(24);
}

TemporaryFile::TemporaryFile(fs::path target)
    : target_(std::move(target)), path_(temporary_name(target_)) {}

TemporaryFile::TemporaryFile(fs::path target, fs::path path)
    : target_(std::move(target)), path_(std::move(path)) {}

TemporaryFile::~TemporaryFile() {
  std::error_code ignored;
  if (!is_left_) fs::remove_all(path_, ignored);
}

void TemporaryFile::publish() {
  if (::rename(path_.c_str(), target_.c_str()) != 0) throw_system_error("write", target_, errno);
  is_left_ = true;
  File::open(folder_of(target_), O_RDONLY | O_DIRECTORY).flush();
}

}  // namespace smalltalk
