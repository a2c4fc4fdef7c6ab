// Matrix products for matrices of a router's size, where a BLAS spends much of its time on packing.
#include <cstring>

#include "lm/cpu/isa_kernels.hpp"
#include "lm/cpu/isa_simd.hpp"

namespace smalltalk::ST_ISA {
namespace {

// A tile of results stays in registers while kDepth steps of k pass by; a panel of b, [kDepth,
// kColumns], stays in the first-level cache.
constexpr int64_t kColumns = 2 * kLanes, kDepth = 256;
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
};

// Rows x (Vectors * kLanes) results. Row i of a lies at a + i * a_stride, or, transposed, step p of
// k at a + p * a_stride.
// Not inlined: addresses hoisted out of the loop over tiles would take registers from the sums.
template <int Rows, int Vectors, bool Transposed>
__attribute__((noinline)) void compute_tile(const Tile& tile) {
  Vec sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) sums[i][j] = Vec{};
  }
  const int64_t stride = tile.a_stride;
  // One pointer for three rows: x86 addresses base + 0, 1 and 2 strides in one instruction.
  constexpr int kPointers = Transposed ? 1 : (Rows + 2) / 3;
  const float* a[kPointers];
#pragma GCC unroll 4
  for (int i = 0; i < kPointers; ++i) a[i] = tile.a + 3 * i * stride;
  const float* b = tile.b;
  for (int64_t p = 0; p < tile.k; ++p) {
    Vec columns[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) columns[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec value =
          broadcast(Transposed ? a[0][i] : a[Transposed ? 0 : i / 3][(i % 3) * stride]);
#pragma GCC unroll 2
      for (int j = 0; j < Vectors; ++j) sums[i][j] += value * columns[j];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPointers; ++i) a[i] += Transposed ? stride : 1;
    b += tile.b_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
      float* c = tile.c + i * tile.c_stride + j * kLanes;
      Vec value = tile.alpha * sums[i][j];
      if (tile.accumulate) value += load(c);
      store(c, value);
    }
  }
}

template <int Vectors, bool Transposed>
void compute_rows(Tile tile, int64_t rows) {
  const float* a = tile.a;
  float* c = tile.c;
  int64_t done = 0;
  const auto step = [&](int64_t size) {
    done += size;
    tile.a = a + done * (Transposed ? 1 : tile.a_stride);
    tile.c = c + done * tile.c_stride;
  };
  for (; rows - done >= kTileRows && rows - done != 16; step(kTileRows))
    compute_tile<kTileRows, Vectors, Transposed>(tile);
  if constexpr (kTileRows > 8) {  // 16 as 8 + 8 rather than 12 + 4
    for (; rows - done >= 8; step(8)) compute_tile<8, Vectors, Transposed>(tile);
  }
  for (; rows - done >= 4; step(4)) compute_tile<4, Vectors, Transposed>(tile);
  for (; rows - done >= 1; step(1)) compute_tile<1, Vectors, Transposed>(tile);
}

// Fewer columns than a tile has: the results take the way through a block of whole tiles.
template <int Vectors, bool Transposed>
void compute_last_columns(Tile tile, int64_t rows, int64_t columns) {
  constexpr int64_t kBlock = kTileRows * 4;
  constexpr int64_t kWidth = Vectors * kLanes;
  alignas(64) float block[kBlock * kWidth];
  float* c = tile.c;
  const float* a = tile.a;
  const int64_t c_stride = tile.c_stride;
  const bool accumulate = tile.accumulate;
  tile.c = block;
  tile.c_stride = kWidth;
  tile.accumulate = false;
  for (int64_t row = 0; row < rows; row += kBlock) {
    const int64_t count = min_of(kBlock, rows - row);
    tile.a = a + row * (Transposed ? 1 : tile.a_stride);
    compute_rows<Vectors, Transposed>(tile, count);
    for (int64_t i = 0; i < count; ++i) {
      float* line = c + (row + i) * c_stride;
      for (int64_t j = 0; j < columns; ++j) {
        line[j] = accumulate ? line[j] + block[i * kWidth + j] : block[i * kWidth + j];
      }
    }
  }
}

// panel [depth, kColumns] <- `columns` columns of b from row `first` on, the rest zero.
void pack(const Product& g, int64_t first, int64_t depth, int64_t column, int64_t columns,
          float* panel) {
  if (columns < kColumns) std::memset(panel, 0, depth * kColumns * sizeof(float));
  if (!g.b_transposed) {
    for (int64_t p = 0; p < depth; ++p) {
      std::memcpy(panel + p * kColumns, g.b + (first + p) * g.b_stride + column,
                  columns * sizeof(float));
    }
    return;
  }
  const float* b = g.b + column * g.b_stride + first;
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    int64_t p = 0;
    for (; p + kLanes <= depth; p += kLanes) {
      transpose_square(b + i * g.b_stride + p, g.b_stride, panel + p * kColumns + i, kColumns);
    }
    for (; p < depth; ++p) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        panel[p * kColumns + i + lane] = b[(i + lane) * g.b_stride + p];
      }
    }
  }
  for (; i < columns; ++i) {
    for (int64_t p = 0; p < depth; ++p) panel[p * kColumns + i] = b[i * g.b_stride + p];
  }
}

// A few long rows come from memory, of which there are more than a processor follows by itself.
constexpr int64_t kFewRows = 32, kAhead = 4 * kColumns;

void fetch(const float* from, int64_t stride, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t column = 0; column < kColumns; column += 16) {  // a cache line
      __builtin_prefetch(from + i * stride + kAhead + column);
    }
  }
}

// Rows [row, row + rows) of the result, for `depth` steps of k from `first`.
template <bool Transposed>
void compute_block(const Product& g, int64_t row, int64_t rows, int64_t first, int64_t depth,
                   float* panel) {
  Tile tile{};
  tile.k = depth;
  tile.a = Transposed ? g.a + first * g.a_stride + row : g.a + row * g.a_stride + first;
  tile.a_stride = g.a_stride;
  tile.c_stride = g.c_stride;
  tile.alpha = g.alpha;
  tile.accumulate = g.accumulate || first > 0;
  for (int64_t column = 0; column < g.n; column += kColumns) {
    const int64_t columns = min_of(kColumns, g.n - column);
    if (!g.b_transposed && depth <= kFewRows) {
      fetch(g.b + first * g.b_stride + column, g.b_stride, depth);
    }
    if (g.accumulate && rows <= kFewRows) fetch(g.c + row * g.c_stride + column, g.c_stride, rows);
    tile.b = g.b + first * g.b_stride + column;
    tile.b_stride = g.b_stride;
    if (g.b_transposed || (columns < kColumns && columns != kLanes)) {
      pack(g, first, depth, column, columns, panel);
      tile.b = panel;
      tile.b_stride = kColumns;
    }
    tile.c = g.c + row * g.c_stride + column;
    if (columns == kColumns) {
      compute_rows<2, Transposed>(tile, rows);
    } else if (columns == kLanes) {
      compute_rows<1, Transposed>(tile, rows);
    } else if (columns > kLanes) {
      compute_last_columns<2, Transposed>(tile, rows, columns);
    } else {
      compute_last_columns<1, Transposed>(tile, rows, columns);
    }
  }
}

template <bool Transposed>
void compute(const Product& g) {
  alignas(64) float panel[kDepth * kColumns];
  for (int64_t first = 0; first < g.k; first += kDepth) {
    const int64_t depth = min_of(kDepth, g.k - first);
    // Rows of a that stay in the second-level cache while all columns pass by; packing b for each
    // of several blocks would cost more than it saves.
    const int64_t cached = max_of(kTileRows, kCachedFloats / depth / kTileRows * kTileRows);
    const int64_t block = g.b_transposed ? g.m : cached;
    for (int64_t row = 0; row < g.m; row += block) {
      compute_block<Transposed>(g, row, min_of(block, g.m - row), first, depth, panel);
    }
  }
}

// ---- Few rows and few columns: dot products with k across the lanes -----------------------------

constexpr int kDotRows = 4, kDotColumns = kTileRows > 8 ? 4 : 2;
constexpr int64_t kDotDepth = 2048;  // of all rows and columns these stay in the cache

bool are_dots(const Product& g) {
  return g.b_transposed && !g.a_transposed && g.n <= 16 && g.m <= 64 && g.k >= 64;
}

float sum_of(Vec value) {
  float sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += value[lane];
  return sum;
}

template <int Rows, int Columns>
__attribute__((noinline)) void compute_dots(const Tile& tile) {
  Vec sums[Rows][Columns];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sums[i][j] = Vec{};
  }
  int64_t p = 0;
  for (; p + kLanes <= tile.k; p += kLanes) {
    Vec columns[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) columns[j] = load(tile.b + j * tile.b_stride + p);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const Vec row = load(tile.a + i * tile.a_stride + p);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sums[i][j] += row * columns[j];
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < Columns; ++j) {
      float sum = sum_of(sums[i][j]);
      for (int64_t rest = p; rest < tile.k; ++rest) {
        sum += tile.a[i * tile.a_stride + rest] * tile.b[j * tile.b_stride + rest];
      }
      float& c = tile.c[i * tile.c_stride + j];
      c = tile.alpha * sum + (tile.accumulate ? c : 0);
    }
  }
}

void compute_as_dots(const Product& g) {
  for (int64_t first = 0; first < g.k; first += kDotDepth) {
    Tile tile{};
    tile.k = min_of(kDotDepth, g.k - first);
    tile.a_stride = g.a_stride;
    tile.b_stride = g.b_stride;
    tile.c_stride = g.c_stride;
    tile.alpha = g.alpha;
    tile.accumulate = g.accumulate || first > 0;
    for (int64_t column = 0; column < g.n;) {
      const bool wide = g.n - column >= kDotColumns;
      tile.b = g.b + column * g.b_stride + first;
      for (int64_t row = 0; row < g.m;) {
        const bool tall = g.m - row >= kDotRows;
        tile.a = g.a + row * g.a_stride + first;
        tile.c = g.c + row * g.c_stride + column;
        if (wide) {
          tall ? compute_dots<kDotRows, kDotColumns>(tile) : compute_dots<1, kDotColumns>(tile);
        } else {
          tall ? compute_dots<kDotRows, 1>(tile) : compute_dots<1, 1>(tile);
        }
        row += tall ? kDotRows : 1;
      }
      column += wide ? kDotColumns : 1;
    }
  }
}

}  // namespace

void product(const Product& g) {
  if (are_dots(g)) {
    compute_as_dots(g);
  } else if (g.a_transposed) {
    compute<true>(g);
  } else {
    compute<false>(g);
  }
}

}  // namespace smalltalk::ST_ISA
