// The MPI session of a process, and communicators. The only code that knows MPI is src/comm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// A group of ranks. Blocking collectives; move-only. Sizes beyond 2^31 elements are cut into
// pieces. Freed before the session ends.
class Communicator {
 public:
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  ~Communicator();

  int rank() const;
  int size() const;
  const std::string& name() const;

  void barrier();
  void broadcast(std::span<std::byte> bytes, int root);
  void all_reduce_sum(std::span<float> values);
  void all_reduce_sum(std::span<double> values);
  void all_reduce_sum(std::span<int64_t> values);
  void all_reduce_max(std::span<double> values);
  int64_t all_reduce_max(int64_t value);
  void reduce_scatter_sum(std::span<const float> in, std::span<float> out);
  void all_gather(std::span<const float> mine, std::span<float> all);
  // Bytes of any number, joined in rank order; every rank gets all.
  std::vector<std::byte> all_gather_bytes(std::span<const std::byte> mine);
  // Rank `root` gets all, the others nothing. Error: no such rank.
  std::vector<std::byte> gather_bytes(std::span<const std::byte> mine, int root);
  std::vector<std::string> all_gather_strings(const std::string& mine);
  // `mine` holds bytes_to[r] bytes for each rank r, in rank order; returns what the ranks sent to
  // this one, in rank order. Error: bytes_to does not add up to `mine`.
  std::vector<std::byte> all_to_all(std::span<const std::byte> mine,
                                    std::span<const int64_t> bytes_to);

  // The ranks that give the same color, ordered by key. The name is for the ledger and messages.
  Communicator split(int color, int key, const std::string& name);

 private:
  friend class Session;
  struct Impl;
  explicit Communicator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A communicator as plain functions. The communicator must outlive them.
HostCollectives host_collectives(Communicator& communicator);

// Between construction and destruction MPI is up. Works without mpirun as a world of one.
class Session {
 public:
  // `job` is for messages.
  Session(int* argc, char*** argv, std::string job = {});
  ~Session();
  Session(const Session&) = delete;

  Communicator& world();
  // For each rank of the world, the index of its node, nodes numbered in the order of their first
  // rank. [world size]
  const std::vector<int>& node_of_rank() const;
  int local_rank() const;  // among the ranks of this node: picks the GPU
  // From now on nobody waits for ever. A rank that has waited in a collective for so many seconds
  // asks the others where they are; if one of them does not answer, or has made no progress for as
  // long (no collective, no stop_requested()), it says who waits for whom, in which phase, and ends
  // all ranks. So does a rank that itself makes no progress. Who works is waited for, however long
  // it takes. Sends nothing unless somebody has waited too long. Collective.
  void watch(double limit_seconds);
  // This rank has done its part and only waits for the others to do theirs, however long.
  void rest();
  // Prints "[job rank r] error: text". A rank above 0 waits a moment first: if all fail alike and
  // end each other, one line is enough.
  void report_failure(const std::string& text);
  [[noreturn]] void abort(int exit_code);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs `body` inside a session. An exception is printed as "[job rank r] error: text" and ends all
// ranks with exit code 1 within seconds, whatever they are waiting for; nobody is left hanging. If
// every rank is going to throw the same text (bad input that each found alone), it is printed once.
// Stopped becomes kExitRequeue. Returns body's exit code; ranks that return different codes make
// the world exit with the largest. No rank leaves before all have come to their end.
int run_session(int argc, char** argv, const std::string& job,
                const std::function<int(Session&)>& body);

}  // namespace smalltalk
