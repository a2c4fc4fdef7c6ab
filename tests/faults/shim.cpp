// Preloaded into a job: makes its n-th call that changes a file fail, and lets its clock jump.
//
//   SMALLTALK_FAULT_IN       counts calls on files and folders whose absolute path has this text
//   SMALLTALK_FAULT_LOG      a file that gets a line for each such call: what it was, and of what
//   SMALLTALK_FAULT_CALL     which call fails, from 1; none: all are only counted
//   SMALLTALK_FAULT_ERRNO    as a number
//   SMALLTALK_FAULT_ONCE     set: only that call fails; else all after it too, as on a full disk
//   SMALLTALK_FAULT_SHORT    set: if that call is a write, it first writes a half
//   SMALLTALK_CLOCK_ERRORS   "7200 -90000": the seconds by which the wall clock is wrong, another
//                            one at each reading, over and over
//
// Counted: opening to write, write, pwrite, writev, fsync, fdatasync, ftruncate, rename, symlink,
// mkdir, and mmap of a file.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <iterator>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace {

template <typename Function>
Function* original(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// The function of that name which this one stands before.
#define ORIGINAL(function) (original<decltype(function)>(#function))

long number_in(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atol(text);
}

std::string path_of(int descriptor) {
  char path[PATH_MAX];
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t size = readlink(link.c_str(), path, sizeof path);
  return size < 0 ? std::string() : std::string(path, static_cast<size_t>(size));
}

std::string path_at(int folder, const char* path) {
  if (path == nullptr || path[0] == '/') return path == nullptr ? "" : path;
  if (folder != AT_FDCWD) return path_of(folder) + "/" + path;
  char current[PATH_MAX];
  return getcwd(current, sizeof current) == nullptr ? path : std::string(current) + "/" + path;
}

// Counts a call, and says whether it is to fail.
bool fails(const char* call, const std::string& path) {
  static const char* text = std::getenv("SMALLTALK_FAULT_IN");
  if (text == nullptr || path.find(text) == std::string::npos) return false;
  static std::mutex mutex;  // of the counter and the log
  const std::lock_guard lock(mutex);
  static long calls = 0;
  const long at = ++calls;
  static const int log = ORIGINAL(open)(std::getenv("SMALLTALK_FAULT_LOG"),
                                        O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  const std::string line = std::string(call) + " " + path + "\n";
  if (ORIGINAL(write)(log, line.data(), line.size()) < 0) std::abort();
  static const long first = number_in("SMALLTALK_FAULT_CALL");
  static const bool once = std::getenv("SMALLTALK_FAULT_ONCE") != nullptr;
  if (first == 0 || at < first || (once && at > first)) return false;
  static const long error = number_in("SMALLTALK_FAULT_ERRNO");
  errno = static_cast<int>(error);
  return true;
}

bool fails(const char* call, int descriptor) { return fails(call, path_of(descriptor)); }

bool writes_a_half() {
  static const bool set = std::getenv("SMALLTALK_FAULT_SHORT") != nullptr;
  static std::atomic<bool> done{false};
  return set && !done.exchange(true);
}

bool for_writing(int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0; }

mode_t mode_of(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

double clock_error() {
  static const std::vector<double> errors = [] {
    std::istringstream words(std::getenv("SMALLTALK_CLOCK_ERRORS") == nullptr
                                 ? ""
                                 : std::getenv("SMALLTALK_CLOCK_ERRORS"));
    return std::vector<double>(std::istream_iterator<double>(words), {});
  }();
  static std::atomic<size_t> readings{0};
  return errors.empty() ? 0 : errors[readings++ % errors.size()];
}

}  // namespace

extern "C" {

#define OPEN(name)                                                      \
  int name(const char* path, int flags, ...) {                          \
    va_list arguments;                                                  \
    va_start(arguments, flags);                                         \
    const mode_t mode = mode_of(flags, arguments);                      \
    va_end(arguments);                                                  \
    if (for_writing(flags) && fails("open", path_at(AT_FDCWD, path))) { \
      return -1;                                                        \
    }                                                                   \
    return ORIGINAL(name)(path, flags, mode);                           \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                  \
  int name(int folder, const char* path, int flags, ...) {            \
    va_list arguments;                                                \
    va_start(arguments, flags);                                       \
    const mode_t mode = mode_of(flags, arguments);                    \
    va_end(arguments);                                                \
    if (for_writing(flags) && fails("open", path_at(folder, path))) { \
      return -1;                                                      \
    }                                                                 \
    return ORIGINAL(name)(folder, path, flags, mode);                 \
  }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name)                                        \
  int name(const char* path, mode_t mode) {                \
    if (fails("open", path_at(AT_FDCWD, path))) return -1; \
    return ORIGINAL(name)(path, mode);                     \
  }
CREAT(creat)
CREAT(creat64)

// Streams of the standard library open so, and write by write() and writev().
#define FOPEN(name)                                                    \
  FILE* name(const char* path, const char* mode) {                     \
    if (std::string(mode).find_first_of("wa+") != std::string::npos && \
        fails("open", path_at(AT_FDCWD, path))) {                      \
      return nullptr;                                                  \
    }                                                                  \
    return ORIGINAL(name)(path, mode);                                 \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int descriptor, const void* bytes, size_t size) {
  if (!fails("write", descriptor)) return ORIGINAL(write)(descriptor, bytes, size);
  if (size < 2 || !writes_a_half()) return -1;
  return ORIGINAL(write)(descriptor, bytes, size / 2);
}

#define PWRITE(name)                                                          \
  ssize_t name(int descriptor, const void* bytes, size_t size, off_t place) { \
    if (!fails("pwrite", descriptor)) {                                       \
      return ORIGINAL(name)(descriptor, bytes, size, place);                  \
    }                                                                         \
    if (size < 2 || !writes_a_half()) return -1;                              \
    return ORIGINAL(name)(descriptor, bytes, size / 2, place);                \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int descriptor, const iovec* pieces, int count) {
  if (!fails("writev", descriptor)) return ORIGINAL(writev)(descriptor, pieces, count);
  if (count < 1 || !writes_a_half()) return -1;
  return ORIGINAL(write)(descriptor, pieces->iov_base, pieces->iov_len / 2);
}

int fsync(int descriptor) { return fails("fsync", descriptor) ? -1 : ORIGINAL(fsync)(descriptor); }

int fdatasync(int descriptor) {
  return fails("fdatasync", descriptor) ? -1 : ORIGINAL(fdatasync)(descriptor);
}

#define FTRUNCATE(name)                                                            \
  int name(int descriptor, off_t size) {                                           \
    return fails("ftruncate", descriptor) ? -1 : ORIGINAL(name)(descriptor, size); \
  }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

int rename(const char* from, const char* to) {
  return fails("rename", path_at(AT_FDCWD, to)) ? -1 : ORIGINAL(rename)(from, to);
}

int renameat(int from_folder, const char* from, int to_folder, const char* to) {
  if (fails("rename", path_at(to_folder, to))) return -1;
  return ORIGINAL(renameat)(from_folder, from, to_folder, to);
}

int symlink(const char* target, const char* link) {
  return fails("symlink", path_at(AT_FDCWD, link)) ? -1 : ORIGINAL(symlink)(target, link);
}

int mkdir(const char* path, mode_t mode) {
  return fails("mkdir", path_at(AT_FDCWD, path)) ? -1 : ORIGINAL(mkdir)(path, mode);
}

#define MMAP(name)                                                                             \
  void* name(void* at, size_t size, int protection, int flags, int descriptor, off_t offset) { \
    if (descriptor >= 0 && fails("mmap", descriptor)) return MAP_FAILED;                       \
    return ORIGINAL(name)(at, size, protection, flags, descriptor, offset);                    \
  }
MMAP(mmap)
MMAP(mmap64)

int clock_gettime(clockid_t clock, timespec* now) {
  const int result = ORIGINAL(clock_gettime)(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += static_cast<time_t>(clock_error());
  return result;
}

time_t time(time_t* out) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != nullptr) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(timeval* now, void* zone) {
  const int result = ORIGINAL(gettimeofday)(now, zone);
  now->tv_sec += static_cast<time_t>(clock_error());
  return result;
}

}  // extern "C"
