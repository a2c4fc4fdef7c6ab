#include "core/assignment/row_kernels.hpp"

#include <cmath>
#include <string>

#include "core/assignment/isa_rows.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/instruction_set.hpp"

namespace smalltalk::rows {

#define ST_DECLARE(set)            \
  namespace set {                  \
  extern const RowKernels kernels; \
  }
ST_COPIES(ST_DECLARE)
#define ST_ADDRESS(set) &set::kernels,

namespace {

const RowKernels& kernels() {
  static const KernelCopies<RowKernels> copies{ST_COPIES(ST_ADDRESS)};
  return *copies.best;
}

}  // namespace

int64_t rank_rows(const float* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best) {
  return kernels().scores.rank_rows(rows, count, experts, by_margin, ranks, best);
}
int64_t rank_rows(const uint16_t* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best) {
  return kernels().codes.rank_rows(rows, count, experts, by_margin, ranks, best);
}

void refuse_row(const float* row, int64_t experts, uint64_t sequence) {
  int64_t bad = 0;
  while (bad + 1 < experts && std::isfinite(row[bad])) ++bad;
  throw Error("the score of sequence " + std::to_string(sequence) + " under expert " +
              std::to_string(bad) + " is " + std::to_string(row[bad]) +
              "; scores must be finite (has a router diverged?)");
}
void refuse_row(const uint16_t*, int64_t, uint64_t) {
  throw Error("internal error: codes are always finite");
}

void choose_rows(const float* rows, std::span<const uint32_t> row_of, const int32_t* times,
                 std::span<const int32_t> closed_after, uint16_t* choice) {
  kernels().scores.choose_rows(rows, row_of.data(), times, std::ssize(row_of), closed_after.data(),
                               std::ssize(closed_after), choice);
}
void choose_rows(const uint16_t* rows, std::span<const uint32_t> row_of, const int32_t* times,
                 std::span<const int32_t> closed_after, uint16_t* choice) {
  kernels().codes.choose_rows(rows, row_of.data(), times, std::ssize(row_of), closed_after.data(),
                              std::ssize(closed_after), choice);
}

}  // namespace smalltalk::rows
