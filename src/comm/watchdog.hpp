// The thread behind Session::watch(). Private to comm.
#pragma once

#include <mpi.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "waits.hpp"

namespace smalltalk {

class Watchdog {
 public:
  // The name of its copy of the world.
  static constexpr const char* kCommunicator = "watchdog";

  // `world` is the watchdog's own copy of the world. `complain` prints the text and ends all ranks.
  Watchdog(MPI_Comm world, double limit_seconds,
           std::function<void(const std::string& text)> complain);
  ~Watchdog();  // joins the thread
  Watchdog(const Watchdog&) = delete;

  // This rank has come to its end: it goes on answering, but complains no more.
  void rest() { resting_ = true; }

 private:
  struct Question;
  struct Answer;
  struct Sent;

  void watch(const std::stop_token& stop);
  void answer_questions();
  void send(int rank, int tag, const void* message, size_t size);
  // Asks the other members of a wait; returns why it will never end, or "" if it may.
  std::string ask_about(const WaitState& wait);

  MPI_Comm world_;
  double limit_;
  std::function<void(const std::string&)> complain_;
  int rank_ = 0;
  int64_t questions_ = 0;
  std::deque<std::unique_ptr<Sent>> sent_;
  std::atomic<bool> resting_ = false;
  std::jthread thread_;  // last: it works on all of the above
};

}  // namespace smalltalk
