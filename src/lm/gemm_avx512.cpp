// Compiled with -mavx512f; only called where the processor has it.
#include "gemm_avx512.hpp"

#include <immintrin.h>

#include <algorithm>

namespace smalltalk {
namespace {

// A tile of results in registers: 12 x 32 uses 24 of the 32 registers as sums. kDepth steps of k
// at a time keep a panel of b, [kDepth, 32], in the first-level cache.
constexpr int64_t kRows = 12, kLanes = 16, kColumns = 2 * kLanes, kDepth = 256;
constexpr int64_t kCachedFloats = 64 * 1024;

struct Tile {
  int64_t k;
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  float alpha;
  bool accumulate;
  __mmask16 last;  // lanes of the last vector of columns
};

// Rows x (Vectors * 16) results. Row i of a lies at a + i * a_stride, or, transposed, step p of k
// at a + p * a_stride.
template <int Rows, int Vectors, bool Transposed>
inline void compute_tile(const Tile& tile) {
  __m512 sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) sums[i][j] = _mm512_setzero_ps();
  }
  const int64_t stride = tile.a_stride;
  // One pointer for three rows: x86 addresses base + 0, 1 and 2 strides in one instruction.
  constexpr int kPointers = Transposed ? 1 : (Rows + 2) / 3;
  const float* a[kPointers];
#pragma GCC unroll 4
  for (int i = 0; i < kPointers; ++i) a[i] = tile.a + 3 * i * stride;
  const float* b = tile.b;
  for (int64_t p = 0; p < tile.k; ++p) {
    __m512 columns[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
      columns[j] = j + 1 < Vectors ? _mm512_loadu_ps(b + j * kLanes)
                                   : _mm512_maskz_loadu_ps(tile.last, b + j * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const __m512 value =
          _mm512_set1_ps(Transposed ? a[0][i] : a[Transposed ? 0 : i / 3][(i % 3) * stride]);
#pragma GCC unroll 2
      for (int j = 0; j < Vectors; ++j) {
        sums[i][j] = _mm512_fmadd_ps(value, columns[j], sums[i][j]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPointers; ++i) a[i] += Transposed ? stride : 1;
    b += tile.b_stride;
  }
  const __m512 alpha = _mm512_set1_ps(tile.alpha);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
      float* c = tile.c + i * tile.c_stride + j * kLanes;
      const __mmask16 mask = j + 1 < Vectors ? static_cast<__mmask16>(0xFFFF) : tile.last;
      __m512 value = _mm512_mul_ps(alpha, sums[i][j]);
      if (tile.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, c));
      _mm512_mask_storeu_ps(c, mask, value);
    }
  }
}

template <int Vectors, bool Transposed>
void compute_rows(Tile tile, int64_t rows) {
  const float* a = tile.a;
  float* c = tile.c;
  int64_t left = rows;
  while (left > 0) {
    tile.a = a + (rows - left) * (Transposed ? 1 : tile.a_stride);
    tile.c = c + (rows - left) * tile.c_stride;
    if (left >= kRows) {
      compute_tile<kRows, Vectors, Transposed>(tile);
      left -= kRows;
    } else if (left >= 8) {
      compute_tile<8, Vectors, Transposed>(tile);
      left -= 8;
    } else if (left >= 4) {
      compute_tile<4, Vectors, Transposed>(tile);
      left -= 4;
    } else {
      compute_tile<1, Vectors, Transposed>(tile);
      left -= 1;
    }
  }
}

// out [16 (k), kColumns] <- the transpose of 16 rows of b, 16 values each.
void transpose_16(const float* b, int64_t stride, float* out) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(b + i * stride);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1] = _mm512_shuffle_ps(t[i + j], t[i + j + 2], 0xEE);
    }
  }
  // r[4 g + j] holds, in 128-bit lane l, column 4 l + j of rows 4 g .. 4 g + 3.
  for (int j = 0; j < 4; ++j) {
    const __m512 low01 = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);   // lanes 0, 2
    const __m512 high01 = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xDD);  // lanes 1, 3
    const __m512 low23 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    const __m512 high23 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xDD);
    _mm512_storeu_ps(out + j * kColumns, _mm512_shuffle_f32x4(low01, low23, 0x88));
    _mm512_storeu_ps(out + (4 + j) * kColumns, _mm512_shuffle_f32x4(high01, high23, 0x88));
    _mm512_storeu_ps(out + (8 + j) * kColumns, _mm512_shuffle_f32x4(low01, low23, 0xDD));
    _mm512_storeu_ps(out + (12 + j) * kColumns, _mm512_shuffle_f32x4(high01, high23, 0xDD));
  }
}

// panel [depth, kColumns] <- the transpose of b [columns, depth].
void pack_transposed(const float* b, int64_t stride, int64_t columns, int64_t depth, float* panel) {
  int64_t column = 0;
  for (; column + 16 <= columns; column += 16) {
    int64_t p = 0;
    for (; p + 16 <= depth; p += 16) {
      transpose_16(b + column * stride + p, stride, panel + p * kColumns + column);
    }
    for (; p < depth; ++p) {
      for (int64_t i = 0; i < 16; ++i) {
        panel[p * kColumns + column + i] = b[(column + i) * stride + p];
      }
    }
  }
  for (; column < columns; ++column) {
    for (int64_t p = 0; p < depth; ++p) panel[p * kColumns + column] = b[column * stride + p];
  }
}

// Rows [row, row + rows) of the result, for `depth` steps of k from `first`.
template <bool Transposed>
void compute_block(const SmallGemm& g, int64_t row, int64_t rows, int64_t first, int64_t depth,
                   float* panel) {
  Tile tile{};
  tile.k = depth;
  tile.a = Transposed ? g.a + first * g.a_stride + row : g.a + row * g.a_stride + first;
  tile.a_stride = g.a_stride;
  tile.c_stride = g.c_stride;
  tile.alpha = g.alpha;
  tile.accumulate = g.accumulate || first > 0;
  for (int64_t column = 0; column < g.n; column += kColumns) {
    const int64_t columns = std::min(kColumns, g.n - column);
    tile.b = g.b + first * g.b_stride + column;
    tile.b_stride = g.b_stride;
    if (g.b_transposed) {
      pack_transposed(g.b + column * g.b_stride + first, g.b_stride, columns, depth, panel);
      tile.b = panel;
      tile.b_stride = kColumns;
    }
    tile.c = g.c + row * g.c_stride + column;
    const int64_t last = columns > kLanes ? columns - kLanes : columns;
    tile.last = static_cast<__mmask16>((1U << last) - 1);
    if (columns > kLanes) {
      compute_rows<2, Transposed>(tile, rows);
    } else {
      compute_rows<1, Transposed>(tile, rows);
    }
  }
}

template <bool Transposed>
void compute(const SmallGemm& g) {
  alignas(64) float panel[kDepth * kColumns];
  for (int64_t first = 0; first < g.k; first += kDepth) {
    const int64_t depth = std::min(kDepth, g.k - first);
    // Rows of a that stay in the second-level cache while all columns pass by; packing b for each
    // of several blocks would cost more than it saves.
    const int64_t cached = std::max(kRows, kCachedFloats / depth / kRows * kRows);
    const int64_t block = g.b_transposed ? g.m : cached;
    for (int64_t row = 0; row < g.m; row += block) {
      compute_block<Transposed>(g, row, std::min(block, g.m - row), first, depth, panel);
    }
  }
}

}  // namespace

bool has_avx512() {
  static const bool value = __builtin_cpu_supports("avx512f") != 0;
  return value;
}

void gemm_avx512(const SmallGemm& g) {
  if (g.a_transposed) {
    compute<true>(g);
  } else {
    compute<false>(g);
  }
}

}  // namespace smalltalk
