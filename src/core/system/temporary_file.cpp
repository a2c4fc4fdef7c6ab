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
#include <random>
#include <system_error>
#include <utility>

#include "smalltalk/core/system/file.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

std::string host_name() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) return "host";
  return host.data();
}

const std::string kTemporary = ".tmp-";

// This process among all that have had its number: in containers that is often the same.
const std::string& process_token() {
  static const std::string token = [] {
    std::random_device random;
    return hex_digits(uint64_t{random()} << 32 | random());
  }();
  return token;
}

// Beside its target, so that the rename stays on one file system; hidden, so that no pattern
// catches it; with the target's ending last, for writers that look at it. Host and process keep
// the ranks of a job apart on a shared file system, the counter the threads of a process.
fs::path temporary_name(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  return folder_of(path) /
         (kTemporary + host_name() + "-" + std::to_string(::getpid()) + "-" + process_token() +
          "." + std::to_string(counter++) + "-" + path.filename().string());
}

}  // namespace

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

bool is_stale_temporary(const fs::path& file) {
  const std::string name = file.filename().string();
  if (!name.starts_with(kTemporary)) return false;
  const std::string ours = kTemporary + host_name() + "-";
  const int process = name.starts_with(ours) ? std::atoi(name.c_str() + ours.size()) : 0;
  if (process == ::getpid()) return name.find("-" + process_token() + ".") == std::string::npos;
  if (process > 0 && ::kill(process, 0) != 0 && errno == ESRCH) return true;
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
