#include "in_child_process.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

constexpr int kMillisecondsBetweenPolls = 200;
constexpr int kThrew = 3;  // the child's exit code if its answer is an error's text

[[noreturn]] void answer(int pipe, const std::function<std::string()>& compute) {
  std::string text;
  int status = 0;
  try {
    text = compute();
  } catch (const std::exception& error) {
    text = error.what();
    status = kThrew;
  }
  for (size_t written = 0; written < text.size();) {
    const ssize_t count = ::write(pipe, text.data() + written, text.size() - written);
    if (count < 0 && errno != EINTR) _exit(kThrew);
    if (count > 0) written += static_cast<size_t>(count);
  }
  _exit(status);  // what ends with a process is the parent's to end
}

// Everything up to the end of the child's answer; nothing if this process is asked to stop.
std::optional<std::string> listen(int pipe) {
  std::string text;
  std::array<char, 65536> bytes{};
  while (!stop_requested()) {
    pollfd ready = {.fd = pipe, .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, kMillisecondsBetweenPolls) <= 0) continue;
    const ssize_t count = ::read(pipe, bytes.data(), bytes.size());
    if (count == 0) return text;
    if (count > 0) text.append(bytes.data(), static_cast<size_t>(count));
  }
  return std::nullopt;
}

}  // namespace

std::string in_child_process(const std::string& what, const std::function<std::string()>& compute) {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) throw Error(what + ": no pipe: " + std::strerror(errno));
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) _exit(kThrew);  // it died before it could be watched
    ::close(ends[0]);
    answer(ends[1], compute);
  }
  const int reason = errno;
  ::close(ends[1]);
  std::optional<std::string> text;
  if (child > 0) text = listen(ends[0]);
  ::close(ends[0]);
  if (child < 0) throw Error(what + ": no process: " + std::strerror(reason));
  if (!text) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!text) throw Stopped();
  if (WIFSIGNALED(status))
    throw Error(fmt::format("{} ended by signal {}", what, WTERMSIG(status)));
  if (WEXITSTATUS(status) != 0) throw Error(*text);
  return *text;
}

}  // namespace smalltalk
