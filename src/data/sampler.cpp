#include "smalltalk/data/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/random.hpp"

namespace smalltalk {
namespace {

// The sequences that rows are made of.
struct Rows {
  std::shared_ptr<const TokenFile> tokens;
  std::vector<uint64_t> sequences;  // empty: all
  int64_t seq_length = 0;
  int64_t row_tokens = 0;
  uint64_t size = 0;

  uint64_t sequence(uint64_t index) const { return sequences.empty() ? index : sequences[index]; }
  void read(uint64_t sequence, std::span<int64_t> row) const {
    tokens->read(static_cast<int64_t>(sequence) * seq_length, row);
  }
};

std::shared_ptr<const Rows> make_rows(std::shared_ptr<const TokenFile> tokens,
                                      std::vector<uint64_t> sequences, int64_t seq_length,
                                      int64_t row_tokens) {
  const auto in_file = static_cast<uint64_t>(tokens->num_sequences(seq_length));
  if (row_tokens < 1 || row_tokens > seq_length + 1) {
    throw Error(fmt::format("rows of {} tokens cannot be taken from sequences of {}", row_tokens,
                            seq_length));
  }
  if (in_file == 0) {
    throw Error(fmt::format("{}: {} tokens are less than one sequence of {}",
                            tokens->path().string(), tokens->info().num_tokens, seq_length));
  }
  const auto beyond = std::find_if(sequences.begin(), sequences.end(),
                                   [&](uint64_t sequence) { return sequence >= in_file; });
  if (beyond != sequences.end()) {
    throw Error(
        fmt::format("{}: sequence {} asked for, of {} sequences of {} tokens; do shards "
                    "and tokens belong together?",
                    tokens->path().string(), *beyond, in_file, seq_length));
  }
  const uint64_t size = sequences.empty() ? in_file : sequences.size();
  return std::make_shared<const Rows>(
      Rows{std::move(tokens), std::move(sequences), seq_length, row_tokens, size});
}

void check_request(const Rows& rows, int64_t first, int64_t count, size_t tokens) {
  ST_CHECK(first >= 0 && count >= 0 && static_cast<size_t>(count * rows.row_tokens) == tokens);
}

std::span<int64_t> row_of(const Rows& rows, std::span<int64_t> tokens, int64_t row) {
  const auto size = static_cast<size_t>(rows.row_tokens);
  return tokens.subspan(static_cast<size_t>(row) * size, size);
}

}  // namespace

RowSource shuffled_rows(std::shared_ptr<const TokenFile> tokens, std::vector<uint64_t> sequences,
                        int64_t seq_length, int64_t row_tokens, uint64_t seed) {
  const auto rows = make_rows(std::move(tokens), std::move(sequences), seq_length, row_tokens);
  const auto sequence_of = [rows, seed](int64_t row) {
    const auto n = static_cast<uint64_t>(row);
    const Permutation order(rows->size, derive_seed(seed, "epoch order", n / rows->size));
    return rows->sequence(order(n % rows->size));
  };
  const auto read = [rows, sequence_of](int64_t first, int64_t count, std::span<int64_t> out) {
    check_request(*rows, first, count, out.size());
    for (int64_t i = 0; i < count; ++i) rows->read(sequence_of(first + i), row_of(*rows, out, i));
  };
  return {row_tokens, read, sequence_of};
}

RowSource ordered_rows(std::shared_ptr<const TokenFile> tokens, std::vector<uint64_t> sequences,
                       int64_t seq_length, int64_t row_tokens) {
  const auto rows = make_rows(std::move(tokens), std::move(sequences), seq_length, row_tokens);
  const auto read = [rows](int64_t first, int64_t count, std::span<int64_t> out) {
    check_request(*rows, first, count, out.size());
    if (static_cast<uint64_t>(first + count) > rows->size) {
      throw Error(fmt::format("rows {} to {} asked for, of {}", first, first + count, rows->size));
    }
    for (int64_t i = 0; i < count; ++i) {
      rows->read(rows->sequence(static_cast<uint64_t>(first + i)), row_of(*rows, out, i));
    }
  };
  return {row_tokens, read};
}

RowSource numbered_from(int64_t first, RowSource rows) {
  RowSource result{rows.row_tokens,
                   [read = std::move(rows.read), first](int64_t row, int64_t count, auto tokens) {
                     read(row - first, count, tokens);
                   }};
  if (rows.sequence_of) {
    result.sequence_of = [sequence_of = std::move(rows.sequence_of), first](int64_t row) {
      return sequence_of(row - first);
    };
  }
  return result;
}

}  // namespace smalltalk
