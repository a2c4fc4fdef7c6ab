#include <exception>
#include <functional>
#include <numeric>
#include <utility>

#include "communicator_impl.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {
namespace {

template <typename T>
void broadcast_pieces(MPI_Comm comm, const std::string& name, T* data, int64_t total, int root) {
  for_each_piece(total, max_mpi_count(), [&](int64_t offset, int count) {
    check_mpi(MPI_Bcast(data + offset, count, mpi_type<T>(), root, comm), "MPI_Bcast", name);
  });
}

// Blocks of sizes[r] elements joined in rank order into `all`. Displacements of MPI are int too, so
// what does not fit into one call is broadcast block by block.
template <typename T>
void gather_blocks(MPI_Comm comm, const std::string& name, int rank, std::span<const T> mine,
                   const std::vector<int64_t>& sizes, std::span<T> all) {
  if (static_cast<int64_t>(all.size()) <= max_mpi_count()) {
    std::vector<int> counts(sizes.begin(), sizes.end());
    std::vector<int> offsets(sizes.size());
    std::exclusive_scan(counts.begin(), counts.end(), offsets.begin(), 0);
    check_mpi(MPI_Allgatherv(mine.data(), static_cast<int>(mine.size()), mpi_type<T>(), all.data(),
                             counts.data(), offsets.data(), mpi_type<T>(), comm),
              "MPI_Allgatherv", name);
    return;
  }
  T* block = all.data();
  for (size_t r = 0; r < sizes.size(); ++r) {
    if (static_cast<int>(r) == rank && block != mine.data()) {
      std::copy(mine.begin(), mine.end(), block);
    }
    broadcast_pieces(comm, name, block, sizes[r], static_cast<int>(r));
    block += sizes[r];
  }
}

template <typename T>
std::pair<std::vector<T>, std::vector<int64_t>> gather_v(MPI_Comm comm, const std::string& name,
                                                         int rank, int size,
                                                         std::span<const T> mine) {
  std::vector<int64_t> sizes(static_cast<size_t>(size));
  const auto my_size = static_cast<int64_t>(mine.size());
  check_mpi(MPI_Allgather(&my_size, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, comm),
            "MPI_Allgather", name);
  std::vector<T> all(static_cast<size_t>(std::accumulate(sizes.begin(), sizes.end(), int64_t{0})));
  if (!all.empty()) gather_blocks<T>(comm, name, rank, mine, sizes, all);
  return {std::move(all), std::move(sizes)};
}

void require_sizes(const char* call, const std::string& name, size_t whole, size_t part, int size) {
  if (whole == part * static_cast<size_t>(size)) return;
  throw Error(std::string(call) + " on communicator \"" + name + "\": " + std::to_string(whole) +
              " elements are not " + std::to_string(size) + " blocks of " + std::to_string(part));
}

bool mpi_is_up() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

}  // namespace

Communicator::Impl::Impl(MPI_Comm handle, const std::string& given_name)
    : comm(handle), name(given_name) {
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  // MPI cuts longer names; the ledger must see the same name as ledger_outside() is asked for.
  if (name.size() >= MPI_MAX_OBJECT_NAME) name.resize(MPI_MAX_OBJECT_NAME - 1);
  MPI_Comm_set_name(comm, name.c_str());
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
}

Communicator::Impl::~Impl() {
  // Freeing is collective; with an exception in flight the peers may be elsewhere.
  if (mpi_is_up() && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm);
}

Communicator::Communicator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;
Communicator::~Communicator() = default;

int Communicator::rank() const { return impl_->rank; }
int Communicator::size() const { return impl_->size; }
const std::string& Communicator::name() const { return impl_->name; }

void Communicator::barrier() { impl_->check(MPI_Barrier(impl_->comm), "MPI_Barrier"); }

void Communicator::broadcast(std::span<std::byte> bytes, int root) {
  broadcast_pieces(impl_->comm, impl_->name, bytes.data(), static_cast<int64_t>(bytes.size()),
                   root);
}

void Communicator::all_reduce_sum(std::span<float> values) {
  all_reduce_in_rank_order(impl_->comm, impl_->name, values);
}

void Communicator::all_reduce_sum(std::span<double> values) {
  all_reduce_in_rank_order(impl_->comm, impl_->name, values);
}

int64_t Communicator::all_reduce_max(int64_t value) {
  impl_->check(MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT64_T, MPI_MAX, impl_->comm),
               "MPI_Allreduce");
  return value;
}

void Communicator::reduce_scatter_sum(std::span<const float> in, std::span<float> out) {
  require_sizes("reduce_scatter_sum", impl_->name, in.size(), out.size(), impl_->size);
  if (out.empty()) return;
  // MPI forbids that the buffers overlap; a caller with one flat buffer may well want it.
  const std::less<const float*> before;
  if (before(out.data(), in.data() + in.size()) && before(in.data(), out.data() + out.size())) {
    std::vector<float> apart(out.size());
    reduce_scatter_sum(in, apart);
    std::copy(apart.begin(), apart.end(), out.begin());
    return;
  }
  if (static_cast<int64_t>(in.size()) <= max_mpi_count()) {
    impl_->check(MPI_Reduce_scatter_block(in.data(), out.data(), static_cast<int>(out.size()),
                                          MPI_FLOAT, MPI_SUM, impl_->comm),
                 "MPI_Reduce_scatter_block");
    return;
  }
  for (int root = 0; root < impl_->size; ++root) {
    const float* block = in.data() + static_cast<size_t>(root) * out.size();
    const auto total = static_cast<int64_t>(out.size());
    for_each_piece(total, max_mpi_count(), [&](int64_t offset, int count) {
      float* sum = root == impl_->rank ? out.data() + offset : nullptr;
      impl_->check(MPI_Reduce(block + offset, sum, count, MPI_FLOAT, MPI_SUM, root, impl_->comm),
                   "MPI_Reduce");
    });
  }
}

void Communicator::all_gather(std::span<const float> mine, std::span<float> all) {
  require_sizes("all_gather", impl_->name, all.size(), mine.size(), impl_->size);
  if (mine.empty()) return;
  if (static_cast<int64_t>(all.size()) > max_mpi_count()) {
    const std::vector<int64_t> sizes(static_cast<size_t>(impl_->size),
                                     static_cast<int64_t>(mine.size()));
    gather_blocks<float>(impl_->comm, impl_->name, impl_->rank, mine, sizes, all);
    return;
  }
  const int count = static_cast<int>(mine.size());
  const bool in_place = mine.data() == all.data() + static_cast<size_t>(impl_->rank) * mine.size();
  impl_->check(MPI_Allgather(in_place ? MPI_IN_PLACE : mine.data(), count, MPI_FLOAT, all.data(),
                             count, MPI_FLOAT, impl_->comm),
               "MPI_Allgather");
}

std::vector<float> Communicator::all_gather_v(std::span<const float> mine) {
  return gather_v<float>(impl_->comm, impl_->name, impl_->rank, impl_->size, mine).first;
}

std::vector<std::string> Communicator::all_gather_strings(const std::string& mine) {
  const auto [text, sizes] = gather_v<char>(impl_->comm, impl_->name, impl_->rank, impl_->size,
                                            std::span<const char>(mine));
  std::vector<std::string> strings;
  size_t begin = 0;
  for (const int64_t size : sizes) {
    strings.emplace_back(text.data() + begin, static_cast<size_t>(size));
    begin += static_cast<size_t>(size);
  }
  return strings;
}

Communicator Communicator::split(int color, int key, const std::string& name) {
  if (color < 0) throw Error("split: color " + std::to_string(color) + " is negative");
  MPI_Comm comm = MPI_COMM_NULL;
  impl_->check(MPI_Comm_split(impl_->comm, color, key, &comm), "MPI_Comm_split");
  return Communicator(std::make_unique<Impl>(comm, name));
}

HostCollectives host_collectives(Communicator& communicator) {
  Communicator* c = &communicator;
  HostCollectives collectives;
  collectives.rank = c->rank();
  collectives.size = c->size();
  collectives.all_reduce_sum = [c](std::span<float> values) { c->all_reduce_sum(values); };
  collectives.reduce_scatter_sum = [c](std::span<const float> in, std::span<float> out) {
    c->reduce_scatter_sum(in, out);
  };
  collectives.all_gather = [c](std::span<const float> mine, std::span<float> all) {
    c->all_gather(mine, all);
  };
  collectives.broadcast = [c](std::span<std::byte> bytes, int root) { c->broadcast(bytes, root); };
  collectives.barrier = [c] { c->barrier(); };
  return collectives;
}

}  // namespace smalltalk
