#include "smalltalk/core/system/write_lock.hpp"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <thread>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/file.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

std::string describe_this_process() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host = {"?"};
  std::string text = fmt::format("process {} on {}", ::getpid(), host.data());
  if (const char* job = std::getenv("SLURM_JOB_ID")) text += fmt::format(", Slurm job {}", job);
  return text + fmt::format(", since {:%Y-%m-%d %H:%M:%S}", fmt::localtime(std::time(nullptr)));
}

bool try_lock(int descriptor, double patience_seconds) {
  const double start = now_seconds();
  while (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) {
      log_warning("this file system has no locks: do not start two jobs on one run folder");
      return true;
    }
    if (stop_requested() || now_seconds() - start > patience_seconds) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return true;
}

}  // namespace

WriteLock::WriteLock(const std::filesystem::path& path, const std::string& what,
                     double patience_seconds) {
  create_folder(path.parent_path());
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_system_error("open", path, errno);
  if (!try_lock(descriptor_, patience_seconds)) {
    ::close(descriptor_);
    stop_if_asked();
    const std::string holder = read_text(path);
    throw Error(fmt::format("{} is being written by another job ({}): wait for it or end it", what,
                            holder.substr(0, holder.find('\n'))));
  }
  // For the message above; the lock itself is the system's.
  const std::string text = describe_this_process() + "\n";
  if (::ftruncate(descriptor_, 0) != 0 ||
      ::pwrite(descriptor_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    const int error = errno;
    ::close(descriptor_);
    throw_system_error("write", path, error);
  }
}

WriteLock::~WriteLock() { ::close(descriptor_); }

bool is_locked(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  // Shared, and for a moment only: who wants the lock meanwhile is patient.
  const bool held = ::flock(descriptor, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(descriptor);
  return held;
}

}  // namespace smalltalk
