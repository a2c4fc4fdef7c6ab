#include "core/assignment/row_kernels.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "smalltalk/core/system/error.hpp"

// One copy for AVX2 and one for any x86-64; the loader picks (the compiler vectorises the plain
// loops below, which have no branches for that reason).
#if defined(__SANITIZE_THREAD__)  // the loader picks before the sanitizer is there, and crashes
#define ST_FOR_SEVERAL_CPUS
#else
#define ST_FOR_SEVERAL_CPUS __attribute__((target_clones("avx2", "default")))
#endif
#define ST_INLINE inline __attribute__((always_inline))

namespace smalltalk::rows {
namespace {

constexpr int32_t kNobody = std::numeric_limits<int32_t>::min();  // below every score
constexpr int64_t kAhead = 32;                                    // rows fetched ahead of their use

// A score as an integer of the same order. The bits of a float order like its magnitude; adding
// zero makes -0 a +0.
ST_INLINE int32_t ordered(float score) {
  const auto bits = std::bit_cast<int32_t>(score + 0.0F);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}
ST_INLINE int32_t ordered(uint16_t code) { return code; }

ST_INLINE int32_t is_finite(float score) {
  return static_cast<int32_t>((std::bit_cast<int32_t>(score) & 0x7F800000) != 0x7F800000);
}
ST_INLINE int32_t is_finite(uint16_t) { return 1; }

// Best minus second best, as an integer of the same order.
ST_INLINE int32_t margin_of(int32_t best, int32_t second, float) {
  const auto value = [](int32_t order) {
    return std::bit_cast<float>(order ^ ((order >> 31) & 0x7FFFFFFF));
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
    second = std::max(second, (value & ~is_best) | (kNobody & is_best));
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
  for (int64_t e = 0; e < experts; ++e) best = std::max(best, value(e));
  int32_t expert = std::numeric_limits<int32_t>::max();
  for (int32_t e = 0; e < static_cast<int32_t>(experts); ++e) {
    const int32_t is_other = -static_cast<int32_t>(value(e) != best);
    expert = std::min(expert, e | (is_other & std::numeric_limits<int32_t>::max()));
  }
  return {best, static_cast<uint16_t>(expert)};
}

// A code and its expert fit into one word, so that one maximum finds both.
template <typename IsOpen>
ST_INLINE Best best_of(const uint16_t* row, int64_t experts, IsOpen is_open) {
  int32_t best = kNobody;
  for (int32_t e = 0; e < static_cast<int32_t>(experts); ++e) {
    const int32_t word = (row[e] - 32768) * 65536 + (65535 - e);
    best = std::max(best, (word & is_open(e)) | (kNobody & ~is_open(e)));
  }
  return {(best >> 16) + 32768, static_cast<uint16_t>(65535 - (best & 0xFFFF))};
}

template <typename Score>
ST_INLINE int64_t rank_rows_of(const Score* rows, int64_t count, int64_t experts, bool by_margin,
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
ST_INLINE void choose_rows_of(const Score* rows, std::span<const uint32_t> row_of,
                              const int32_t* times, std::span<const int32_t> closed_after,
                              uint16_t* choice) {
  const auto experts = static_cast<int64_t>(closed_after.size());
  const auto count = static_cast<int64_t>(row_of.size());
  const auto row_at = [&](int64_t i) {
    return rows + int64_t{row_of[static_cast<size_t>(i)]} * experts;
  };
  // The rows lie anywhere in memory: without fetching ahead, each one is a wait.
  const int64_t lines =
      std::min<int64_t>(8, (experts * static_cast<int64_t>(sizeof(Score)) + 63) / 64);
  const int32_t* closed = closed_after.data();
  for (int64_t i = 0; i < count; ++i) {
    const char* ahead = reinterpret_cast<const char*>(row_at(std::min(i + kAhead, count - 1)));
    for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(ahead + 64 * line);
    const int32_t time = times[i];
    choice[i] = best_of(row_at(i), experts, [&](int64_t e) {
                  return -static_cast<int32_t>(closed[e] >= time);
                }).expert;
  }
}

}  // namespace

ST_FOR_SEVERAL_CPUS
int64_t rank_rows(const float* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best) {
  return rank_rows_of(rows, count, experts, by_margin, ranks, best);
}
ST_FOR_SEVERAL_CPUS
int64_t rank_rows(const uint16_t* rows, int64_t count, int64_t experts, bool by_margin,
                  uint32_t* ranks, uint16_t* best) {
  return rank_rows_of(rows, count, experts, by_margin, ranks, best);
}

void refuse_row(const float* row, int64_t experts, uint64_t sequence) {
  int64_t bad = 0;
  while (bad + 1 < experts && is_finite(row[bad]) != 0) ++bad;
  throw Error("the score of sequence " + std::to_string(sequence) + " under expert " +
              std::to_string(bad) + " is " + std::to_string(row[bad]) +
              "; scores must be finite (has a router diverged?)");
}
void refuse_row(const uint16_t*, int64_t, uint64_t) {
  throw Error("internal error: codes are always finite");
}

ST_FOR_SEVERAL_CPUS
void choose_rows(const float* rows, std::span<const uint32_t> row_of, const int32_t* times,
                 std::span<const int32_t> closed_after, uint16_t* choice) {
  choose_rows_of(rows, row_of, times, closed_after, choice);
}
ST_FOR_SEVERAL_CPUS
void choose_rows(const uint16_t* rows, std::span<const uint32_t> row_of, const int32_t* times,
                 std::span<const int32_t> closed_after, uint16_t* choice) {
  choose_rows_of(rows, row_of, times, closed_after, choice);
}

}  // namespace smalltalk::rows
