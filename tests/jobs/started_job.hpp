// A job that runs while a test does something to it.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "job_runner.hpp"
#include "smalltalk/core/system/clock.hpp"

namespace smalltalk {

inline void brief_pause() { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }

// Those whose command line holds `text`, and whose program is `program`, if one is named.
inline std::vector<pid_t> processes_with(const std::string& text, const std::string& program = "") {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "cmdline");
    std::string line;
    std::getline(file, line);  // nothing if the process has ended meanwhile
    if (line.find(text) == std::string::npos) continue;
    if (program.empty() || line.substr(0, line.find('\0')) == program) {
      found.push_back(static_cast<pid_t>(std::stol(name)));
    }
  }
  return found;
}

// Whether a process has a handler for a signal.
inline bool catches(pid_t process, int signal) {
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("SigCgt:")) {
      return (std::stoull(line.substr(7), nullptr, 16) >> (signal - 1) & 1) != 0;
    }
  }
  return false;
}

class StartedJob {
 public:
  // A shell command, which should begin with `exec`; its output goes to a file.
  StartedJob(const std::string& command, std::filesystem::path output)
      : output_(std::move(output)), pid_(fork()) {
    if (pid_ < 0) throw std::runtime_error("fork failed");
    if (pid_ > 0) return;
    setpgid(0, 0);
    const int file = ::open(output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  ~StartedJob() {
    if (running()) end();
  }
  StartedJob(const StartedJob&) = delete;
  StartedJob& operator=(const StartedJob&) = delete;

  pid_t pid() const { return pid_; }

  bool running() {
    int status = 0;
    if (!exit_code_ && waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return !exit_code_;
  }

  // A job that does not end is killed: exit code kTimedOut.
  Outcome wait(double seconds = 60) {
    const double patience = now_seconds() + seconds;
    while (running() && now_seconds() < patience) brief_pause();
    const bool timed_out = running();
    if (timed_out) end();
    return {timed_out ? kTimedOut : *exit_code_, read_text(output_), 0};
  }

 private:
  void end() {
    kill(-pid_, SIGKILL);
    while (running()) brief_pause();
  }

  std::filesystem::path output_;
  pid_t pid_;
  std::optional<int> exit_code_;
};

}  // namespace smalltalk
