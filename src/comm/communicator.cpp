#include <exception>
#include <functional>
#include <numeric>
#include <utility>

#include "communicator_impl.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

template <typename T>
void broadcast_pieces(MPI_Comm comm, const std::string& name, T* data, int64_t total, int root) {
  for_each_piece(total, max_mpi_count(), [&](int64_t offset, int count) {
    check_mpi(MPI_Bcast(data + offset, count, mpi_type<T>(), root, comm), "MPI_Bcast", name);
  });
}

std::vector<int> offsets_of(const std::vector<int>& counts) {
  std::vector<int> offsets(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), offsets.begin(), 0);
  return offsets;
}

int64_t sum(std::span<const int64_t> values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

// Blocks of sizes[r] elements joined in rank order into `all`. Displacements of MPI are int too, so
// what does not fit into one call is broadcast block by block.
template <typename T>
void gather_blocks(MPI_Comm comm, const std::string& name, int rank, std::span<const T> mine,
                   const std::vector<int64_t>& sizes, std::span<T> all) {
  if (static_cast<int64_t>(all.size()) <= max_mpi_count()) {
    const std::vector<int> counts(sizes.begin(), sizes.end());
    const std::vector<int> offsets = offsets_of(counts);
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

// The sizes of the ranks' blocks, known to all of them, so that all take the same way.
std::vector<int64_t> gather_sizes(MPI_Comm comm, const std::string& name, int size,
                                  std::span<const std::byte> mine) {
  std::vector<int64_t> sizes(static_cast<size_t>(size));
  const auto my_size = static_cast<int64_t>(mine.size());
  check_mpi(MPI_Allgather(&my_size, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, comm),
            "MPI_Allgather", name);
  return sizes;
}

struct Gathered {
  std::vector<std::byte> bytes;
  std::vector<int64_t> sizes;  // of the ranks' blocks
};

Gathered all_gather_blocks(MPI_Comm comm, const std::string& name, int rank, int size,
                           std::span<const std::byte> mine) {
  Gathered all{{}, gather_sizes(comm, name, size, mine)};
  all.bytes.resize(static_cast<size_t>(sum(all.sizes)));
  if (!all.bytes.empty()) {
    gather_blocks<std::byte>(comm, name, rank, mine, all.sizes, all.bytes);
  }
  return all;
}

// An exchange of any size, one partner at a time. With itself too, so that the ledger counts what
// it counts in MPI_Alltoallv.
void exchange_in_pairs(MPI_Comm comm, const std::string& name, int rank,
                       std::span<const std::byte> out, std::span<const int64_t> bytes_to,
                       std::span<std::byte> in, std::span<const int64_t> bytes_from) {
  const auto block_of = [](auto buffer, std::span<const int64_t> sizes, int r) {
    const auto place = static_cast<size_t>(r);
    return buffer.subspan(static_cast<size_t>(sum(sizes.first(place))),
                          static_cast<size_t>(sizes[place]));
  };
  const int size = static_cast<int>(bytes_to.size());
  const auto limit = static_cast<size_t>(max_mpi_count());
  for (int step = 0; step < size; ++step) {
    const int to = (rank + step) % size, from = (rank + size - step) % size;
    const std::span<const std::byte> sent = block_of(out, bytes_to, to);
    const std::span<std::byte> received = block_of(in, bytes_from, from);
    for (size_t offset = 0; offset < std::max(sent.size(), received.size()); offset += limit) {
      const auto piece_of = [&](auto block) {
        const size_t begin = std::min(offset, block.size());
        return block.subspan(begin, std::min(limit, block.size() - begin));
      };
      // The two blocks may differ in length: the shorter one ends with nobody as its partner.
      const auto send = piece_of(sent);
      const auto receive = piece_of(received);
      check_mpi(MPI_Sendrecv(send.data(), static_cast<int>(send.size()), MPI_BYTE,
                             send.empty() ? MPI_PROC_NULL : to, 0, receive.data(),
                             static_cast<int>(receive.size()), MPI_BYTE,
                             receive.empty() ? MPI_PROC_NULL : from, 0, comm, MPI_STATUS_IGNORE),
                "MPI_Sendrecv", name);
    }
  }
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
  MPI_Group mine = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
  MPI_Comm_group(comm, &mine);
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  std::vector<int> all(static_cast<size_t>(size));
  std::iota(all.begin(), all.end(), 0);
  members = all;
  MPI_Group_translate_ranks(mine, size, all.data(), world, members.data());
  MPI_Group_free(&mine);
  MPI_Group_free(&world);
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

void Communicator::barrier() {
  const Wait wait = impl_->waiting("MPI_Barrier");
  impl_->check(MPI_Barrier(impl_->comm), "MPI_Barrier");
}

void Communicator::broadcast(std::span<std::byte> bytes, int root) {
  const Wait wait = impl_->waiting("MPI_Bcast");
  broadcast_pieces(impl_->comm, impl_->name, bytes.data(), static_cast<int64_t>(bytes.size()),
                   root);
}

void Communicator::all_reduce_sum(std::span<float> values) {
  const Wait wait = impl_->waiting("MPI_Allreduce");
  all_reduce_in_rank_order(impl_->comm, impl_->name, values);
}

void Communicator::all_reduce_sum(std::span<double> values) {
  const Wait wait = impl_->waiting("MPI_Allreduce");
  all_reduce_in_rank_order(impl_->comm, impl_->name, values);
}

void Communicator::all_reduce_sum(std::span<int64_t> values) {
  const Wait wait = impl_->waiting("MPI_Allreduce");
  all_reduce_pieces(impl_->comm, impl_->name, values, MPI_SUM);
}

void Communicator::all_reduce_max(std::span<double> values) {
  const Wait wait = impl_->waiting("MPI_Allreduce");
  all_reduce_pieces(impl_->comm, impl_->name, values, MPI_MAX);
}

int64_t Communicator::all_reduce_max(int64_t value) {
  const Wait wait = impl_->waiting("MPI_Allreduce");
  all_reduce_pieces(impl_->comm, impl_->name, std::span(&value, 1), MPI_MAX);
  return value;
}

void Communicator::reduce_scatter_sum(std::span<const float> in, std::span<float> out) {
  require_sizes("reduce_scatter_sum", impl_->name, in.size(), out.size(), impl_->size);
  if (out.empty()) return;
  const Wait wait = impl_->waiting("MPI_Reduce_scatter");
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
  const Wait wait = impl_->waiting("MPI_Allgather");
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

std::vector<std::byte> Communicator::all_gather_bytes(std::span<const std::byte> mine) {
  const Wait wait = impl_->waiting("MPI_Allgatherv");
  return all_gather_blocks(impl_->comm, impl_->name, impl_->rank, impl_->size, mine).bytes;
}

std::vector<std::byte> Communicator::gather_bytes(std::span<const std::byte> mine, int root) {
  if (root < 0 || root >= impl_->size) {
    throw Error("gather_bytes on communicator \"" + impl_->name + "\": there is no rank " +
                std::to_string(root));
  }
  const Wait wait = impl_->waiting("MPI_Gatherv");
  std::vector<int64_t> sizes = gather_sizes(impl_->comm, impl_->name, impl_->size, mine);
  const int64_t total = sum(sizes);
  if (impl_->rank != root) std::fill(sizes.begin(), sizes.end(), 0);
  std::vector<std::byte> all(static_cast<size_t>(sum(sizes)));
  if (total > max_mpi_count()) {
    std::vector<int64_t> bytes_to(sizes.size(), 0);
    bytes_to[static_cast<size_t>(root)] = static_cast<int64_t>(mine.size());
    exchange_in_pairs(impl_->comm, impl_->name, impl_->rank, mine, bytes_to, all, sizes);
  } else if (total > 0) {
    const std::vector<int> counts(sizes.begin(), sizes.end());
    impl_->check(MPI_Gatherv(mine.data(), static_cast<int>(mine.size()), MPI_BYTE, all.data(),
                             counts.data(), offsets_of(counts).data(), MPI_BYTE, root, impl_->comm),
                 "MPI_Gatherv");
  }
  return all;
}

std::vector<std::string> Communicator::all_gather_strings(const std::string& mine) {
  const Wait wait = impl_->waiting("MPI_Allgatherv");
  const auto [text, sizes] = all_gather_blocks(impl_->comm, impl_->name, impl_->rank, impl_->size,
                                               std::as_bytes(std::span(mine)));
  std::vector<std::string> strings;
  size_t begin = 0;
  for (const int64_t size : sizes) {
    strings.emplace_back(reinterpret_cast<const char*>(text.data()) + begin,
                         static_cast<size_t>(size));
    begin += static_cast<size_t>(size);
  }
  return strings;
}

std::vector<std::byte> Communicator::all_to_all(std::span<const std::byte> mine,
                                                std::span<const int64_t> bytes_to) {
  const auto size = static_cast<size_t>(impl_->size);
  const std::string where = "all_to_all on communicator \"" + impl_->name + "\": ";
  if (bytes_to.size() != size) {
    throw Error(where + std::to_string(bytes_to.size()) + " counts for " + std::to_string(size) +
                " ranks");
  }
  if (std::any_of(bytes_to.begin(), bytes_to.end(), [](int64_t n) { return n < 0; })) {
    throw Error(where + "a count is negative");
  }
  if (sum(bytes_to) != static_cast<int64_t>(mine.size())) {
    throw Error(where + "the counts add up to " + std::to_string(sum(bytes_to)) + " of " +
                std::to_string(mine.size()) + " bytes");
  }

  const Wait wait = impl_->waiting("MPI_Alltoallv");
  std::vector<int64_t> bytes_from(size);
  impl_->check(
      MPI_Alltoall(bytes_to.data(), 1, MPI_INT64_T, bytes_from.data(), 1, MPI_INT64_T, impl_->comm),
      "MPI_Alltoall");
  std::vector<std::byte> received(static_cast<size_t>(sum(bytes_from)));
  // All ranks must take the same way.
  const int64_t largest =
      all_reduce_max(static_cast<int64_t>(std::max(mine.size(), received.size())));
  if (largest > max_mpi_count()) {
    exchange_in_pairs(impl_->comm, impl_->name, impl_->rank, mine, bytes_to, received, bytes_from);
  } else if (largest > 0) {
    const std::vector<int> out(bytes_to.begin(), bytes_to.end());
    const std::vector<int> in(bytes_from.begin(), bytes_from.end());
    impl_->check(
        MPI_Alltoallv(mine.data(), out.data(), offsets_of(out).data(), MPI_BYTE, received.data(),
                      in.data(), offsets_of(in).data(), MPI_BYTE, impl_->comm),
        "MPI_Alltoallv");
  }
  return received;
}

Communicator Communicator::split(int color, int key, const std::string& name) {
  if (color < 0) throw Error("split: color " + std::to_string(color) + " is negative");
  MPI_Comm comm = MPI_COMM_NULL;
  const Wait wait = impl_->waiting("MPI_Comm_split");
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
  collectives.all_reduce_sum_int64 = [c](std::span<int64_t> values) { c->all_reduce_sum(values); };
  collectives.all_reduce_max = [c](std::span<double> values) { c->all_reduce_max(values); };
  collectives.all_to_all = [c](std::span<const std::byte> mine, std::span<const int64_t> bytes_to) {
    return c->all_to_all(mine, bytes_to);
  };
  collectives.all_gather_bytes = [c](std::span<const std::byte> mine) {
    return c->all_gather_bytes(mine);
  };
  collectives.gather_bytes = [c](std::span<const std::byte> mine, int root) {
    return c->gather_bytes(mine, root);
  };
  collectives.barrier = [c] { c->barrier(); };
  return collectives;
}

}  // namespace smalltalk
