#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <thread>

#include "communicator_impl.hpp"
#include "ledger_record.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/error.hpp"
#include "watchdog.hpp"

namespace smalltalk {
namespace {

// std::exit() inside a body would leave the peers in whatever they wait for. Launchers notice a
// process that is gone without MPI_Finalize, but not all and not at once.
void abort_if_mpi_is_up() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) MPI_Abort(MPI_COMM_WORLD, kExitFailure);
}

MPI_Comm world_copy() {
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup", "MPI_COMM_WORLD");
  return comm;
}

// One write: lines of several ranks do not mix.
void print_line(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (written <= 0) return;  // nobody is left to tell
    done += static_cast<size_t>(written);
  }
}

// Bad input is often found by every rank at the same moment. Rank 0 prints and aborts at once; the
// others first give the ranks below them time to do so, which a busy machine needs, and are then
// ended before they print. Who fails alone is heard in two seconds.
std::chrono::milliseconds time_for_lower_ranks(int rank, int size) {
  return std::chrono::milliseconds(rank == 0 ? 0 : 1000 + 1000 * int64_t{rank} / size);
}

// The rank that stands for this rank's node: the lowest on it. Tests pretend nodes of n ranks.
int first_rank_of_node(MPI_Comm world, int rank) {
  if (const char* text = std::getenv("SMALLTALK_RANKS_PER_NODE")) {
    const int ranks_per_node = std::atoi(text);
    if (ranks_per_node < 1) {
      throw Error(std::string("SMALLTALK_RANKS_PER_NODE=") + text + ": give a number from 1 on");
    }
    return rank / ranks_per_node * ranks_per_node;
  }
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node),
            "MPI_Comm_split_type", "world");
  int first = rank;
  const int result = MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, node);
  MPI_Comm_free(&node);
  check_mpi(result, "MPI_Allreduce", "node");
  return first;
}

// Tasks of one srun that each take themselves for a whole world would all do, and write, the same.
void refuse_strangers() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  const bool by_mpirun = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  if (by_mpirun || tasks == nullptr || std::atoi(tasks) <= 1) return;
  throw Error(fmt::format(
      "srun started {} tasks, each of which is a world of one rank: MPI and srun do not speak the "
      "same PMI. Say srun --mpi=pmix (srun --mpi=list tells what there is), or start it by mpirun",
      tasks));
}

}  // namespace

struct Session::Impl {
  // MPI is up before, and goes down after, the communicator that needs it.
  struct Library {
    Library(int* argc, char*** argv) {
      int provided = MPI_THREAD_SINGLE;
      check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread",
                "MPI_COMM_WORLD");
      MPI_Comm_size(MPI_COMM_WORLD, &size);
      if (size > 1) {
        std::atexit(abort_if_mpi_is_up);
        std::at_quick_exit(abort_if_mpi_is_up);
      }
      if (provided < MPI_THREAD_MULTIPLE) {
        throw Error("this MPI library gives no MPI_THREAD_MULTIPLE: build it with thread support");
      }
    }
    // MPI_Finalize waits for all ranks. An exception on its way through here means that the others
    // may never come: leave MPI up, and the end of this process ends them.
    ~Library() {
      if (size == 1 || std::uncaught_exceptions() == exceptions) MPI_Finalize();
    }
    int size = 1;
    int exceptions = std::uncaught_exceptions();
  };

  Impl(int* argc, char*** argv, std::string job_name)
      : library(argc, argv),
        job(std::move(job_name)),
        world(std::make_unique<Communicator::Impl>(world_copy(), "world")) {}

  Library library;
  std::string job;
  std::unique_ptr<Watchdog> watchdog;
  Communicator world;
  std::vector<int> node_of_rank;  // [world size]
  int local_rank = 0;
};

Session::Session(int* argc, char*** argv, std::string job) {
  link_ledger_calls();
  impl_ = std::make_unique<Impl>(argc, argv, std::move(job));
  if (impl_->library.size == 1) refuse_strangers();
  MPI_Comm world = impl_->world.impl_->comm;
  const int rank = impl_->world.rank();
  const auto size = static_cast<size_t>(impl_->world.size());
  const int first = first_rank_of_node(world, rank);

  std::vector<int> first_of_rank(size);
  check_mpi(MPI_Allgather(&first, 1, MPI_INT, first_of_rank.data(), 1, MPI_INT, world),
            "MPI_Allgather", "world");
  // Lowest ranks in ascending order number the nodes in the order of their first rank.
  std::vector<int> firsts = first_of_rank;
  std::sort(firsts.begin(), firsts.end());
  firsts.erase(std::unique(firsts.begin(), firsts.end()), firsts.end());
  for (const int f : first_of_rank) {
    const auto place = std::lower_bound(firsts.begin(), firsts.end(), f);
    impl_->node_of_rank.push_back(static_cast<int>(place - firsts.begin()));
  }
  impl_->local_rank =
      static_cast<int>(std::count(first_of_rank.begin(), first_of_rank.begin() + rank, first));
  // The gather above must be in the ledger; if not, its zeros mean nothing.
  if (ledger_entries().empty()) {
    throw Error("the ledger does not see MPI calls: link smalltalk_comm before the MPI library");
  }
}

Session::~Session() = default;

Communicator& Session::world() { return impl_->world; }
const std::vector<int>& Session::node_of_rank() const { return impl_->node_of_rank; }
int Session::local_rank() const { return impl_->local_rank; }

void Session::watch(double limit_seconds) {
  MPI_Comm copy = world_copy();
  MPI_Comm_set_name(copy, Watchdog::kCommunicator);
  MPI_Comm_set_errhandler(copy, MPI_ERRORS_RETURN);
  impl_->watchdog =
      std::make_unique<Watchdog>(copy, limit_seconds, [this](const std::string& text) {
        report_failure(text);
        abort(kExitFailure);
      });
}

void Session::rest() {
  if (impl_->watchdog) impl_->watchdog->rest();
}

void Session::report_failure(const std::string& text) {
  const int rank = world().rank();
  const int size = world().size();
  if (size > 1) {
    // The launcher ends us by SIGTERM; a handler that wants to save first would be in the way.
    std::signal(SIGTERM, SIG_DFL);
    std::this_thread::sleep_for(time_for_lower_ranks(rank, size));
  }
  print_line(fmt::format("[{} rank {}] error: {}", impl_->job, rank, text));
}

void Session::abort(int exit_code) {
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // the launcher forwards our line
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

}  // namespace smalltalk
