#include <vector>

#include "communicator_impl.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kPieceElements = int64_t{1} << 22;  // bounds the buffer
constexpr int64_t kSmallElements = int64_t{1} << 14;  // below this, latency counts: one call

// sum <- terms[0] + terms[1] + ..., terms [num_terms, sum.size()].
template <typename T>
void sum_rows(const T* terms, int num_terms, std::span<T> sum) {
  std::copy(terms, terms + sum.size(), sum.begin());
  for (int term = 1; term < num_terms; ++term) {
    const T* row = terms + static_cast<size_t>(term) * sum.size();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += row[i];
  }
}

// Everybody gets everything and adds it up.
template <typename T>
void gather_and_sum(MPI_Comm comm, const std::string& name, int size, std::span<T> values,
                    std::vector<T>& buffer) {
  const int count = static_cast<int>(values.size());
  buffer.resize(values.size() * static_cast<size_t>(size));
  check_mpi(
      MPI_Allgather(values.data(), count, mpi_type<T>(), buffer.data(), count, mpi_type<T>(), comm),
      "MPI_Allgather", name);
  sum_rows<T>(buffer.data(), size, values);
}

// Each rank adds up one part, then the parts are gathered.
template <typename T>
void scatter_sum_gather(MPI_Comm comm, const std::string& name, int rank, int size,
                        std::span<T> values, std::vector<T>& buffer) {
  const auto ranks = static_cast<size_t>(size);
  const auto total = static_cast<int64_t>(values.size());
  std::vector<int> counts(ranks), offsets(ranks);
  for (int r = 0; r < size; ++r) {
    const auto [begin, end] = part_of_range(total, r, size);
    offsets[static_cast<size_t>(r)] = static_cast<int>(begin);
    counts[static_cast<size_t>(r)] = static_cast<int>(end - begin);
  }
  const int mine = counts[static_cast<size_t>(rank)];
  std::vector<int> mine_counts(ranks, mine), mine_offsets(ranks);
  for (int r = 0; r < size; ++r) mine_offsets[static_cast<size_t>(r)] = r * mine;

  buffer.resize(static_cast<size_t>(mine) * ranks);
  check_mpi(
      MPI_Alltoallv(values.data(), counts.data(), offsets.data(), mpi_type<T>(), buffer.data(),
                    mine_counts.data(), mine_offsets.data(), mpi_type<T>(), comm),
      "MPI_Alltoallv", name);
  const auto begin = static_cast<size_t>(offsets[static_cast<size_t>(rank)]);
  sum_rows<T>(buffer.data(), size, values.subspan(begin, static_cast<size_t>(mine)));
  check_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values.data(), counts.data(),
                           offsets.data(), mpi_type<T>(), comm),
            "MPI_Allgatherv", name);
}

}  // namespace

template <typename T>
void all_reduce_in_rank_order(MPI_Comm comm, const std::string& name, std::span<T> values) {
  int rank = 0, size = 1;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  const auto total = static_cast<int64_t>(values.size());
  if (size <= 2) {  // a + b == b + a: there is only one order
    all_reduce_pieces(comm, name, values, MPI_SUM);
    return;
  }
  std::vector<T> buffer;
  const int64_t limit = std::min(kPieceElements, max_mpi_count());
  for_each_piece(total, limit, [&](int64_t offset, int count) {
    const auto piece = values.subspan(static_cast<size_t>(offset), static_cast<size_t>(count));
    if (int64_t{count} * size <= kSmallElements) {
      gather_and_sum(comm, name, size, piece, buffer);
    } else {
      scatter_sum_gather(comm, name, rank, size, piece, buffer);
    }
  });
}

template void all_reduce_in_rank_order(MPI_Comm, const std::string&, std::span<float>);
template void all_reduce_in_rank_order(MPI_Comm, const std::string&, std::span<double>);

}  // namespace smalltalk
