// The two loops over rows of scores. The compiler vectorises the plain loops below, which have no
// branches for that reason.
#include "core/assignment/isa_rows.hpp"

#include <limits>

#define ST_INLINE inline __attribute__((always_inline))

namespace smalltalk::rows::ST_ISA {
namespace {

constexpr int32_t kNobody = std::numeric_limits<int32_t>::min();  // below every score
constexpr int64_t kAhead = 32;                                    // rows fetched ahead of their use

template <typename T>
ST_INLINE T min_of(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
ST_INLINE T max_of(T a, T b) {
  return a > b ? a : b;
}

// A score as an integer of the same order. The bits of a float order like its magnitude; adding
// zero makes -0 a +0.
ST_INLINE int32_t ordered(float score) {
  const auto bits = __builtin_bit_cast(int32_t, score + 0.0F);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}
ST_INLINE int32_t ordered(uint16_t code) { return code; }

ST_INLINE int32_t is_finite(float score) {
  return static_cast<int32_t>((__builtin_bit_cast(int32_t, score) & 0x7F800000) != 0x7F800000);
}
ST_INLINE int32_t is_finite(uint16_t) { return 1; }

// Best minus second best, as an integer of the same order.
ST_INLINE int32_t margin_of(int32_t best, int32_t second, float) {
  const auto value = [](int32_t order) {
    return __builtin_bit_cast(float, order ^ ((order >> 31) & 0x7FFFFFFF));
  };
  return ordered(value(best) - value(second));
}
ST_INLINE int32_t margin_of(int32_t best, int32_t second, uint16_t) { return best - second; }

template <typename Score>
ST_INLINE int32_t margin_of_row(const Score* row, int64_t experts, int32_t best) {
  int32_t times_best = 0;
  int32_t second = kNobody;
  for (int64_t e = 0; e < experts; ++e) {
    const int32_t value = ordered(row[e]);
    const int32_t is_best = -static_cast<int32_t>(value == best);
    times_best -= is_best;
    second = max_of(second, (value & ~is_best) | (kNobody & is_best));
  }
  if (times_best > 1) second = best;
  return second == kNobody ? 0 : margin_of(best, second, Score{});  // one expert has no margin
}

struct Best {
  int32_t score;  // ordered()
  uint16_t expert;
};

// The best of the experts for which is_open(e) is -1, not 0; ties by expert. Masks instead of
// conditions, or the compiler would not vectorise.
template <typename IsOpen>
ST_INLINE Best best_of(const float* row, int64_t experts, IsOpen is_open) {
  const auto value = [&](int64_t e) {
    return (ordered(row[e]) & is_open(e)) | (kNobody & ~is_open(e));
  };
  int32_t best = kNobody;
  for (int64_t e = 0; e < experts; ++e) best = max_of(best, value(e));
  int32_t expert = std::numeric_limits<int32_t>::max();
  for (int32_t e = 0; e < static_cast<int32_t>(experts); ++e) {
    const int32_t is_other = -static_cast<int32_t>(value(e) != best);
    expert = min_of(expert, e | (is_other & std::numeric_limits<int32_t>::max()));
  }
  return {best, static_cast<uint16_t>(expert)};
}

// A code and its expert fit into one word, so that one maximum finds both.
template <typename IsOpen>
ST_INLINE Best best_of(const uint16_t* row, int64_t experts, IsOpen is_open) {
  int32_t best = kNobody;
  for (int32_t e = 0; e < static_cast<int32_t>(experts); ++e) {
    const int32_t word = (row[e] - 32768) * 65536 + (65535 - e);
    best = max_of(best, (word & is_open(e)) | (kNobody & ~is_open(e)));
  }
  return {(best >> 16) + 32768, static_cast<uint16_t>(65535 - (best & 0xFFFF))};
}

template <typename Score>
int64_t rank_rows(const Score* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best_experts) {
  for (int64_t i = 0; i < count; ++i) {
    const Score* row = rows + i * experts;
    int32_t finite = 1;
    for (int64_t e = 0; e < experts; ++e) finite &= is_finite(row[e]);
    if (finite == 0) return i;
    const Best best = best_of(row, experts, [](int64_t) { return -1; });
    const int32_t value = by_margin ? margin_of_row(row, experts, best.score) : best.score;
    ranks[i] = 0x7FFFFFFFU - static_cast<uint32_t>(value);
    best_experts[i] = best.expert;
  }
  return count;
}

template <typename Score>
void choose_rows(const Score* rows, const uint32_t* row_of, const int32_t* times, int64_t count,
                 const int32_t* closed_after, int64_t experts, uint16_t* choice) {
  const auto row_at = [&](int64_t i) { return rows + int64_t{row_of[i]} * experts; };
  // The rows lie anywhere in memory: without fetching ahead, each one is a wait.
  const int64_t lines =
      min_of(int64_t{8}, (experts * static_cast<int64_t>(sizeof(Score)) + 63) / 64);
  for (int64_t i = 0; i < count; ++i) {
    const char* ahead = reinterpret_cast<const char*>(row_at(min_of(i + kAhead, count - 1)));
    for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(ahead + 64 * line);
    const int32_t time = times[i];
    choice[i] = best_of(row_at(i), experts, [&](int64_t e) {
                  return -static_cast<int32_t>(closed_after[e] >= time);
                }).expert;
  }
}

}  // namespace

extern const RowKernels kernels;
const RowKernels kernels = {ST_ISA_NAME,
                            {rank_rows<float>, choose_rows<float>},
                            {rank_rows<uint16_t>, choose_rows<uint16_t>}};

}  // namespace smalltalk::rows::ST_ISA
