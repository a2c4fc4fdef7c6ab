// Two processes as the ranks of a group, for tests of what a process has one of: a GPU.
#pragma once

#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>

#include "support/exchanging_collectives.hpp"

namespace smalltalk {

// Made by a test. The program is started again for this very test, as the second rank, where it
// comes by here, too.
class ProcessPair {
 public:
  using Bytes = HostCollectives::Bytes;

  ProcessPair() {
    if (std::getenv(kSecond) != nullptr) {
      rank_ = 1;
      socket_ = kSocket;
      return;
    }
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      throw Error("no sockets for two processes");
    }
    socket_ = ends[0];
    const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
    std::string program = "/proc/self/exe", filter = std::string("--gtest_filter=") +
                                                     test.test_suite_name() + "." + test.name();
    const std::array<char*, 3> arguments = {program.data(), filter.data(), nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], kSocket);
    ::setenv(kSecond, "1", 1);
    const int failed =
        ::posix_spawn(&second_, program.c_str(), &actions, nullptr, arguments.data(), ::environ);
    ::unsetenv(kSecond);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    if (failed != 0) {
      ::close(socket_);
      throw Error("the second process cannot be started");
    }
  }
  // The second rank hears that its peer is gone.
  ~ProcessPair() {
    ::close(socket_);
    if (second_ > 0) wait();
  }
  ProcessPair(const ProcessPair&) = delete;
  ProcessPair& operator=(const ProcessPair&) = delete;

  // Which the pair must outlive.
  HostCollectives collectives() {
    return exchanging_collectives(
        rank_, 2, [this](std::span<const std::byte> mine) { return exchange(mine); });
  }

  // Of the first rank: whether the second one's test passed, once it has ended.
  bool wait() {
    int status = 1;
    ::waitpid(second_, &status, 0);
    second_ = 0;
    return status == 0;
  }

 private:
  static constexpr const char* kSecond = "SMALLTALK_SECOND_PROCESS";
  static constexpr int kSocket = 9;  // of the second rank

  // One speaks while the other listens: what is sent may be larger than what a socket holds.
  std::vector<Bytes> exchange(std::span<const std::byte> mine) {
    const Bytes own(mine.begin(), mine.end());
    if (rank_ == 0) {
      send(mine);
      return {own, receive()};
    }
    Bytes other = receive();
    send(mine);
    return {std::move(other), own};
  }

  void send(std::span<const std::byte> bytes) {
    const uint64_t size = bytes.size();
    send_all(std::as_bytes(std::span(&size, 1)));
    send_all(bytes);
  }
  Bytes receive() {
    uint64_t size = 0;
    receive_all(std::as_writable_bytes(std::span(&size, 1)));
    Bytes bytes(size);
    receive_all(bytes);
    return bytes;
  }
  void send_all(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      bytes = bytes.subspan(moved(::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL)));
    }
  }
  void receive_all(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
      bytes = bytes.subspan(moved(::recv(socket_, bytes.data(), bytes.size(), 0)));
    }
  }
  static size_t moved(ssize_t count) {
    if (count <= 0) throw Error("the other process is gone");
    return static_cast<size_t>(count);
  }

  int rank_ = 0;
  int socket_ = -1;
  pid_t second_ = 0;
};

}  // namespace smalltalk
