// The ledger: what each call counts, and that nothing goes past it. This test calls MPI itself, to
// plant the traffic that the ledger must catch.
#include "smalltalk/comm/ledger.hpp"

#include <gtest/gtest.h>
#include <mpi.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "../mpi_test.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

// (calls, bytes) of a call, summed over phases.
std::pair<int64_t, int64_t> counted(const std::string& communicator, const std::string& call) {
  std::pair<int64_t, int64_t> sum{0, 0};
  for (const LedgerEntry& entry : ledger_entries()) {
    if (entry.communicator != communicator || entry.call != call) continue;
    sum.first += entry.calls;
    sum.second += entry.bytes;
  }
  return sum;
}

using Counts = std::pair<int64_t, int64_t>;

class Ledger : public testing::Test {
 protected:
  void SetUp() override {
    set_ledger_phase(Phase::start);
    clear_ledger();
  }
  void TearDown() override { world.barrier(); }

  Communicator& world = test_world();
  int rank = world.rank();
  int size = world.size();
};

TEST_F(Ledger, CountsOurCollectives) {
  std::vector<float> ten(10), all(10 * static_cast<size_t>(size));
  std::vector<std::byte> bytes(33);
  world.barrier();
  world.barrier();
  world.broadcast(bytes, 0);
  world.all_gather(ten, all);
  world.reduce_scatter_sum(all, ten);
  world.all_reduce_max(1);
  EXPECT_EQ(counted("world", "MPI_Barrier"), Counts(2, 0));
  EXPECT_EQ(counted("world", "MPI_Bcast"), Counts(1, rank == 0 ? 33 : 0));
  EXPECT_EQ(counted("world", "MPI_Allgather"), Counts(1, 40));
  EXPECT_EQ(counted("world", "MPI_Reduce_scatter_block"), Counts(1, 40 * size));
  EXPECT_EQ(counted("world", "MPI_Allreduce"), Counts(1, 8));

  clear_ledger();
  world.all_gather_bytes(std::span<const std::byte>(bytes).first(static_cast<size_t>(rank)));
  EXPECT_EQ(counted("world", "MPI_Allgather"), Counts(1, 8));  // the lengths
  EXPECT_EQ(counted("world", "MPI_Allgatherv"), size > 1 ? Counts(1, rank) : Counts(0, 0));

  clear_ledger();
  world.gather_bytes(bytes, size - 1);
  EXPECT_EQ(counted("world", "MPI_Allgather"), Counts(1, 8));  // the lengths
  EXPECT_EQ(counted("world", "MPI_Gatherv"), Counts(1, 33));

  clear_ledger();
  std::vector<int64_t> integers(1024);
  std::vector<double> doubles(3);
  world.all_reduce_sum(integers);  // routing makes thousands: each must be a single call
  world.all_reduce_max(doubles);
  EXPECT_EQ(ledger_entries().size(), 1u);
  EXPECT_EQ(counted("world", "MPI_Allreduce"), Counts(2, 8 * (1024 + 3)));
}

TEST_F(Ledger, CountsAnAllToAll) {
  // r + 1 bytes to rank r, as many to itself as to any other.
  std::vector<int64_t> bytes_to;
  for (int r = 0; r < size; ++r) bytes_to.push_back(r + 1);
  const int64_t sent = size * (size + 1) / 2;
  const std::vector<std::byte> bytes(static_cast<size_t>(sent));
  world.all_to_all(bytes, bytes_to);
  EXPECT_EQ(counted("world", "MPI_Alltoall"), Counts(1, 8 * size));  // the lengths
  EXPECT_EQ(counted("world", "MPI_Allreduce"), Counts(1, 8));        // does it fit into one call?
  EXPECT_EQ(counted("world", "MPI_Alltoallv"), Counts(1, sent));
}

TEST_F(Ledger, CountsByPhaseAndCommunicator) {
  Communicator group = world.split(rank, 0, "group " + std::to_string(rank));
  set_ledger_phase(Phase::route);
  world.barrier();
  set_ledger_phase(Phase::experts);
  group.barrier();
  std::vector<std::string> lines;
  for (const LedgerEntry& e : ledger_entries()) {
    lines.push_back(to_string(e.phase) + "|" + e.communicator + "|" + e.call + "|" +
                    std::to_string(e.calls));
  }
  const std::vector<std::string> expected = {"start|world|MPI_Comm_split|1",
                                             "route|world|MPI_Barrier|1",
                                             "experts|" + group.name() + "|MPI_Barrier|1"};
  EXPECT_EQ(lines, expected);
}

// The claim of the whole program, and the reason for the ledger.
TEST_F(Ledger, FindsAPlantedMessageBetweenExperts) {
  Communicator group = world.split(rank / 2, rank, "group " + std::to_string(rank / 2));
  std::vector<float> values(1000, 1.0f);
  set_ledger_group(group.name());
  set_ledger_phase(Phase::experts);
  group.all_reduce_sum(values);
  group.barrier();
  LedgerOutside outside = ledger_outside(after_shards);
  EXPECT_EQ(outside.calls, 0);
  EXPECT_EQ(outside.bytes, 0);
  EXPECT_GT(counted(group.name(), "MPI_Allreduce").second, 0);

  const int right = (rank + 1) % size, left = (rank + size - 1) % size;
  MPI_Request request;
  MPI_Irecv(values.data(), 5, MPI_FLOAT, left, 0, MPI_COMM_WORLD, &request);
  MPI_Send(values.data() + 10, 5, MPI_FLOAT, right, 0, MPI_COMM_WORLD);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  outside = ledger_outside(after_shards);
  // A world of one only talked to itself.
  EXPECT_EQ(outside.calls, size > 1 ? 1 : 0);
  EXPECT_EQ(outside.bytes, size > 1 ? 20 : 0);
  EXPECT_EQ(outside.what, size > 1
                              ? std::vector<std::string>{"MPI_Send on MPI_COMM_WORLD in experts"}
                              : std::vector<std::string>());
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Send"), Counts(1, 20));
  EXPECT_EQ(ledger_outside([](Phase phase) { return phase == Phase::route; }).calls, 0);
}

TEST_F(Ledger, AnUnnamedCommunicatorIsNobodysGroup) {
  MPI_Comm comm;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  set_ledger_phase(Phase::experts);
  int64_t one = 1;
  MPI_Allreduce(MPI_IN_PLACE, &one, 1, MPI_INT64_T, MPI_SUM, comm);
  MPI_Comm_free(&comm);
  EXPECT_EQ(counted("unnamed", "MPI_Allreduce"), Counts(1, 8));
  EXPECT_EQ(ledger_outside(after_shards).bytes, size > 1 ? 8 : 0);
}

TEST_F(Ledger, CountsEveryKindOfSend) {
  const int right = (rank + 1) % size, left = (rank + size - 1) % size;
  int out[8] = {}, in[8] = {};
  std::vector<char> attached(1 << 16);
  MPI_Buffer_attach(attached.data(), static_cast<int>(attached.size()));

  const auto exchange = [&](auto&& send) {
    MPI_Request receive;
    MPI_Irecv(in, 8, MPI_INT, left, 1, MPI_COMM_WORLD, &receive);
    MPI_Barrier(MPI_COMM_WORLD);  // a ready send needs its receive
    MPI_Request request = MPI_REQUEST_NULL;
    send(&request);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    MPI_Wait(&receive, MPI_STATUS_IGNORE);
  };
#define ST_BLOCKING(call)                                                           \
  exchange([&](MPI_Request*) { call(out, 8, MPI_INT, right, 1, MPI_COMM_WORLD); }); \
  EXPECT_EQ(counted("MPI_COMM_WORLD", #call), Counts(1, 32))
#define ST_NONBLOCKING(call)                                                             \
  exchange([&](MPI_Request* r) { call(out, 8, MPI_INT, right, 1, MPI_COMM_WORLD, r); }); \
  EXPECT_EQ(counted("MPI_COMM_WORLD", #call), Counts(1, 32))
#define ST_PERSISTENT(call)                                                                      \
  {                                                                                              \
    MPI_Request made;                                                                            \
    call(out, 8, MPI_INT, right, 1, MPI_COMM_WORLD, &made);                                      \
    EXPECT_EQ(counted("MPI_COMM_WORLD", #call), Counts(0, 0));                                   \
    exchange([&](MPI_Request*) { MPI_Start(&made), MPI_Wait(&made, MPI_STATUS_IGNORE); });       \
    exchange([&](MPI_Request*) { MPI_Startall(1, &made), MPI_Wait(&made, MPI_STATUS_IGNORE); }); \
    MPI_Request_free(&made);                                                                     \
    EXPECT_EQ(counted("MPI_COMM_WORLD", #call), Counts(2, 64));                                  \
  }
  ST_BLOCKING(MPI_Send);
  ST_BLOCKING(MPI_Ssend);
  ST_BLOCKING(MPI_Bsend);
  ST_BLOCKING(MPI_Rsend);
  ST_NONBLOCKING(MPI_Isend);
  ST_NONBLOCKING(MPI_Issend);
  ST_NONBLOCKING(MPI_Ibsend);
  ST_NONBLOCKING(MPI_Irsend);
  ST_PERSISTENT(MPI_Send_init);
  ST_PERSISTENT(MPI_Ssend_init);
  ST_PERSISTENT(MPI_Bsend_init);
  ST_PERSISTENT(MPI_Rsend_init);

  MPI_Sendrecv(out, 8, MPI_INT, right, 1, in, 8, MPI_INT, left, 1, MPI_COMM_WORLD,
               MPI_STATUS_IGNORE);
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Sendrecv"), Counts(1, 32));
  MPI_Sendrecv_replace(out, 8, MPI_INT, right, 1, left, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Sendrecv_replace"), Counts(1, 32));
  MPI_Send(out, 8, MPI_INT, MPI_PROC_NULL, 1, MPI_COMM_WORLD);
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Send"), Counts(2, 32));  // nobody there: no bytes
  void* detached = nullptr;
  int detached_size = 0;
  MPI_Buffer_detach(&detached, &detached_size);
}

TEST_F(Ledger, CountsRawCollectives) {
  const auto n = static_cast<size_t>(size);
  std::vector<double> a(3 * n), b(3 * n);
  std::vector<int> counts(n, 3), offsets(n), byte_offsets(n);
  for (size_t r = 0; r < n; ++r) {
    offsets[r] = static_cast<int>(3 * r);
    byte_offsets[r] = static_cast<int>(24 * r);
  }
  const std::vector<MPI_Datatype> types(n, MPI_DOUBLE);
  const MPI_Comm comm = MPI_COMM_WORLD;
  const int64_t block = 24, whole = block * size, at_root = rank == 0 ? whole : 0;
  MPI_Request q;
  const auto wait = [&] { MPI_Wait(&q, MPI_STATUS_IGNORE); };

  MPI_Reduce(a.data(), b.data(), 3, MPI_DOUBLE, MPI_SUM, 0, comm);
  MPI_Allreduce(a.data(), b.data(), 3, MPI_DOUBLE, MPI_SUM, comm);
  MPI_Iallreduce(a.data(), b.data(), 3, MPI_DOUBLE, MPI_SUM, comm, &q), wait();
  MPI_Scan(a.data(), b.data(), 3, MPI_DOUBLE, MPI_SUM, comm);
  MPI_Exscan(a.data(), b.data(), 3, MPI_DOUBLE, MPI_SUM, comm);
  MPI_Gather(a.data(), 3, MPI_DOUBLE, b.data(), 3, MPI_DOUBLE, 0, comm);
  MPI_Gatherv(a.data(), 3, MPI_DOUBLE, b.data(), counts.data(), offsets.data(), MPI_DOUBLE, 0,
              comm);
  MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, b.data(), 3, MPI_DOUBLE, comm);
  MPI_Iallgather(a.data(), 3, MPI_DOUBLE, b.data(), 3, MPI_DOUBLE, comm, &q), wait();
  MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, b.data(), counts.data(), offsets.data(),
                 MPI_DOUBLE, comm);
  MPI_Iallgatherv(a.data(), 3, MPI_DOUBLE, b.data(), counts.data(), offsets.data(), MPI_DOUBLE,
                  comm, &q),
      wait();
  for (const char* call :
       {"MPI_Reduce", "MPI_Allreduce", "MPI_Iallreduce", "MPI_Scan", "MPI_Exscan", "MPI_Gather",
        "MPI_Gatherv", "MPI_Allgather", "MPI_Iallgather", "MPI_Allgatherv", "MPI_Iallgatherv"}) {
    EXPECT_EQ(counted("MPI_COMM_WORLD", call), Counts(1, block)) << call;
  }

  MPI_Scatter(a.data(), 3, MPI_DOUBLE, b.data(), 3, MPI_DOUBLE, 0, comm);
  MPI_Scatterv(a.data(), counts.data(), offsets.data(), MPI_DOUBLE, b.data(), 3, MPI_DOUBLE, 0,
               comm);
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Scatter"), Counts(1, at_root));
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Scatterv"), Counts(1, at_root));

  MPI_Alltoall(a.data(), 3, MPI_DOUBLE, b.data(), 3, MPI_DOUBLE, comm);
  MPI_Alltoallv(a.data(), counts.data(), offsets.data(), MPI_DOUBLE, b.data(), counts.data(),
                offsets.data(), MPI_DOUBLE, comm);
  MPI_Alltoallw(a.data(), counts.data(), byte_offsets.data(), types.data(), b.data(), counts.data(),
                byte_offsets.data(), types.data(), comm);
  MPI_Reduce_scatter(a.data(), b.data(), counts.data(), MPI_DOUBLE, MPI_SUM, comm);
  MPI_Reduce_scatter_block(a.data(), b.data(), 3, MPI_DOUBLE, MPI_SUM, comm);
  for (const char* call : {"MPI_Alltoall", "MPI_Alltoallv", "MPI_Alltoallw", "MPI_Reduce_scatter",
                           "MPI_Reduce_scatter_block"}) {
    EXPECT_EQ(counted("MPI_COMM_WORLD", call), Counts(1, whole)) << call;
  }

  MPI_Ibcast(a.data(), 3, MPI_DOUBLE, 0, comm, &q), wait();
  MPI_Ibarrier(comm, &q), wait();
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Ibcast"), Counts(1, rank == 0 ? block : 0));
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Ibarrier"), Counts(1, 0));
}

TEST_F(Ledger, CountsOneSidedCallsUnderTheWindowsCommunicator) {
  MPI_Comm comm;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  MPI_Comm_set_name(comm, "windowed");
  int64_t out[4] = {1, 2, 3, 4}, in[4] = {};
  int64_t* memory = nullptr;  // [4]
  MPI_Win window = MPI_WIN_NULL;
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  const int made = MPI_Win_allocate(4 * sizeof(int64_t), 8, MPI_INFO_NULL, comm, &memory, &window);
  // Open MPI makes no window for one rank alone.
  ASSERT_TRUE(made == MPI_SUCCESS || size == 1);
  EXPECT_EQ(counted("windowed", "MPI_Win_allocate"), Counts(1, 0));
  if (made != MPI_SUCCESS) return;
  set_ledger_phase(Phase::experts);
  const int right = (rank + 1) % size;
  MPI_Win_fence(0, window);
  MPI_Put(out, 2, MPI_INT64_T, right, 0, 2, MPI_INT64_T, window);
  MPI_Win_fence(0, window);
  EXPECT_EQ(memory[1], 2);
  EXPECT_EQ(counted("windowed", "MPI_Put"), Counts(1, 16));
  EXPECT_EQ(ledger_outside(after_shards).bytes, size > 1 ? 16 : 0);

  MPI_Get(in, 1, MPI_INT64_T, right, 1, 1, MPI_INT64_T, window);
  MPI_Win_fence(0, window);
  MPI_Accumulate(out, 3, MPI_INT64_T, right, 0, 3, MPI_INT64_T, MPI_SUM, window);
  MPI_Win_fence(0, window);
  EXPECT_EQ(in[0], 2);
  EXPECT_EQ(counted("windowed", "MPI_Get"), Counts(1, 8));
  EXPECT_EQ(counted("windowed", "MPI_Accumulate"), Counts(1, 24));
  MPI_Win_free(&window);
  MPI_Comm_free(&comm);
}

TEST_F(Ledger, CountsEveryOneSidedCall) {
  if (size == 1) GTEST_SKIP() << "Open MPI makes no window for one rank alone";
  MPI_Comm comm;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  MPI_Comm_set_name(comm, "windowed");
  constexpr MPI_Aint kBytes = 4 * sizeof(int64_t);
  const int right = (rank + 1) % size;
  int64_t out[4] = {1, 2, 3, 4}, in[4] = {};
  int64_t* memory = nullptr;  // [4]
  MPI_Win window;
  MPI_Request request;
  const auto wait = [&] { MPI_Wait(&request, MPI_STATUS_IGNORE); };

  MPI_Win_allocate_shared(kBytes, 8, MPI_INFO_NULL, comm, &memory, &window);
  EXPECT_EQ(counted("windowed", "MPI_Win_allocate_shared"), Counts(1, 0));
  MPI_Win_fence(0, window);
  EXPECT_EQ(counted("windowed", "MPI_Win_fence"), Counts(1, 0));
  MPI_Win_lock_all(0, window);
  MPI_Rput(out, 2, MPI_INT64_T, right, 0, 2, MPI_INT64_T, window, &request), wait();
  EXPECT_EQ(counted("windowed", "MPI_Rput"), Counts(1, 16));
  MPI_Rget(in, 1, MPI_INT64_T, right, 0, 1, MPI_INT64_T, window, &request), wait();
  EXPECT_EQ(counted("windowed", "MPI_Rget"), Counts(1, 8));
  MPI_Raccumulate(out, 3, MPI_INT64_T, right, 0, 3, MPI_INT64_T, MPI_SUM, window, &request), wait();
  EXPECT_EQ(counted("windowed", "MPI_Raccumulate"), Counts(1, 24));
  // These send and get; MPI_NO_OP only gets.
  MPI_Get_accumulate(out, 2, MPI_INT64_T, in, 2, MPI_INT64_T, right, 0, 2, MPI_INT64_T, MPI_SUM,
                     window);
  EXPECT_EQ(counted("windowed", "MPI_Get_accumulate"), Counts(1, 32));
  MPI_Get_accumulate(out, 2, MPI_INT64_T, in, 2, MPI_INT64_T, right, 0, 2, MPI_INT64_T, MPI_NO_OP,
                     window);
  EXPECT_EQ(counted("windowed", "MPI_Get_accumulate"), Counts(2, 48));
  MPI_Rget_accumulate(out, 2, MPI_INT64_T, in, 2, MPI_INT64_T, right, 0, 2, MPI_INT64_T, MPI_SUM,
                      window, &request);
  wait();
  EXPECT_EQ(counted("windowed", "MPI_Rget_accumulate"), Counts(1, 32));
  MPI_Rget_accumulate(out, 2, MPI_INT64_T, in, 2, MPI_INT64_T, right, 0, 2, MPI_INT64_T, MPI_NO_OP,
                      window, &request);
  wait();
  EXPECT_EQ(counted("windowed", "MPI_Rget_accumulate"), Counts(2, 48));
  MPI_Fetch_and_op(out, in, MPI_INT64_T, right, 0, MPI_SUM, window);
  EXPECT_EQ(counted("windowed", "MPI_Fetch_and_op"), Counts(1, 16));
  MPI_Fetch_and_op(out, in, MPI_INT64_T, right, 0, MPI_NO_OP, window);
  EXPECT_EQ(counted("windowed", "MPI_Fetch_and_op"), Counts(2, 24));
  MPI_Compare_and_swap(out, out + 1, in, MPI_INT64_T, right, 0, window);
  EXPECT_EQ(counted("windowed", "MPI_Compare_and_swap"), Counts(1, 24));
  MPI_Win_unlock_all(window);
  MPI_Win_free(&window);
  EXPECT_EQ(counted("windowed", "MPI_Win_free"), Counts(1, 0));

  // Not every transport can make these; the attempt counts.
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  if (MPI_Win_create(in, kBytes, 8, MPI_INFO_NULL, comm, &window) == MPI_SUCCESS) {
    MPI_Win_free(&window);
  }
  EXPECT_EQ(counted("windowed", "MPI_Win_create"), Counts(1, 0));
  if (MPI_Win_create_dynamic(MPI_INFO_NULL, comm, &window) == MPI_SUCCESS) MPI_Win_free(&window);
  EXPECT_EQ(counted("windowed", "MPI_Win_create_dynamic"), Counts(1, 0));
  MPI_Comm_free(&comm);
}

TEST_F(Ledger, IsWrittenAsCounted) {
  const std::vector<std::byte> to_each(static_cast<size_t>(size));
  const std::vector<int64_t> one_byte(static_cast<size_t>(size), 1);
  world.all_to_all(to_each, one_byte);  // at the start: no exchange of scores
  set_ledger_phase(Phase::route);
  for (int exchange = 0; exchange < 3; ++exchange) world.all_to_all(to_each, one_byte);
  set_ledger_phase(Phase::experts);
  char byte = 0;
  MPI_Sendrecv_replace(&byte, 1, MPI_CHAR, (rank + 1) % size, 0, (rank + size - 1) % size, 0,
                       MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  const TemporaryFolder folder;
  write_ledger(folder.path(), "start", rank);

  const std::string file = "start-rank-" + std::to_string(rank) + ".json";
  const auto ledger = nlohmann::json::parse(read_text(folder / file));
  EXPECT_EQ(ledger.at("rank"), rank);
  EXPECT_EQ(ledger.at("collectives"), 3);
  const int outside = size > 1 ? 1 : 0;
  EXPECT_EQ(ledger.at("world_calls_after_shards"), outside);
  EXPECT_EQ(ledger.at("world_bytes_after_shards"), outside);
  std::vector<nlohmann::json> entries;
  for (const auto& entry : ledger.at("entries")) {
    if (entry.at("call") == "MPI_Alltoallv" || entry.at("phase") == "experts") {
      entries.push_back(entry);
    }
  }
  const auto entry = [](const char* phase, const char* communicator, const char* call, int calls,
                        int bytes) {
    return nlohmann::json{{"phase", phase},
                          {"communicator", communicator},
                          {"call", call},
                          {"calls", calls},
                          {"bytes", bytes}};
  };
  EXPECT_EQ(entries,
            (std::vector{entry("start", "world", "MPI_Alltoallv", 1, size),
                         entry("route", "world", "MPI_Alltoallv", 3, 3 * size),
                         entry("experts", "MPI_COMM_WORLD", "MPI_Sendrecv_replace", 1, 1)}));
}

TEST_F(Ledger, CountsFromManyThreads) {
  const auto send_to_nobody = [] {
    for (int i = 0; i < 1000; ++i) {
      MPI_Send(&i, 1, MPI_INT, MPI_PROC_NULL, 0, MPI_COMM_WORLD);
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back(send_to_nobody);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counted("MPI_COMM_WORLD", "MPI_Send"), Counts(4000, 0));
}

}  // namespace
}  // namespace smalltalk
