// Products of matrices that stay in the caches: what a convolution spends its time in.
//
// C [m][n] += sum over k of A [m][k] * B [k][n]. A is read number by number, wherever its rows and
// columns lie. B is packed: panels of kPanel columns, in each of them one row after the other. The
// micro-kernel keeps kTileRows x kPanel numbers of C in registers while it runs along k, with one
// broadcast of A and two fused multiply-adds per row. Each number of C is summed in the order of k,
// however rows and columns are cut.
#pragma once

#include "simd.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// The accumulators leave registers for a row of B and a number of A.
constexpr int kTileRows = kRegisters == 32 ? 14 : 6;

template <typename T>
constexpr int kPanel = 2 * kLanes<T>;

// So many rows of a panel stay in the L1 cache while all rows of A pass by.
template <typename T>
constexpr int64_t kDepth = 24576 / int64_t(kPanel<T> * sizeof(T)) / kPanel<T> * kPanel<T>;

constexpr int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// A: number (m, k) stands at data[m * row + k / run * next_run + k % run * column].
template <typename T>
struct GemmOperand {
  const T* data;
  int64_t row, column, run, next_run;
};

// One tile of C, `rows` high and `vectors` wide. k starts with a run of A, or stays within one.
template <typename T, int rows, int vectors>
void gemm_tile(int64_t depth, const GemmOperand<T>& a, const T* b, T* c, int64_t c_row, bool add) {
  constexpr int lanes = kLanes<T>;
  Vector<T> sums[rows][vectors];
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sums[m][v] = add ? load(c + m * c_row + v * lanes) : Vector<T>{};
    }
  }
  const T* first = a.data;
  for (int64_t left = depth; left > 0; left -= a.run, first += a.next_run) {
    const int64_t run = left < a.run ? left : a.run;
    const T* from = first;
    for (int64_t k = 0; k < run; ++k, from += a.column, b += kPanel<T>) {
      Vector<T> row[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) row[v] = load(b + v * lanes);
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        const T factor = from[m * a.row];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sums[m][v] += factor * row[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(c + m * c_row + v * lanes, sums[m][v]);
  }
}

template <typename T>
using GemmTile = void (*)(int64_t, const GemmOperand<T>&, const T*, T*, int64_t, bool);

// kGemmTiles[vectors - 1][rows - 1]
template <typename T, int vectors, typename Rows>
struct GemmTileRow;
template <typename T, int vectors, int... row>
struct GemmTileRow<T, vectors, std::integer_sequence<int, row...>> {
  static constexpr GemmTile<T> tiles[] = {gemm_tile<T, row + 1, vectors>...};
};
template <typename T, int vectors>
constexpr const GemmTile<T>* kGemmTiles =
    GemmTileRow<T, vectors, std::make_integer_sequence<int, kTileRows>>::tiles;

// The same where the tile's last columns are not C's: only `columns` of them are touched.
template <typename T>
void gemm_edge(GemmTile<T> tile, int64_t rows, int64_t columns, int64_t depth,
               const GemmOperand<T>& a, const T* b, T* c, int64_t c_row, bool add) {
  T edge[kTileRows * kPanel<T>];
  for (int64_t m = 0; add && m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) edge[m * kPanel<T> + n] = c[m * c_row + n];
  }
  tile(depth, a, b, edge, kPanel<T>, add);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) c[m * c_row + n] = edge[m * kPanel<T> + n];
  }
}

// C (+)= A * B, with C's rows c_row apart and B's panels b_panel apart.
template <typename T>
void gemm(int64_t rows, int64_t columns, int64_t depth, const GemmOperand<T>& a, const T* b,
          int64_t b_panel, T* c, int64_t c_row, bool add) {
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
  for (int64_t n = 0; n < columns; n += kPanel<T>, b += b_panel) {
    const bool narrow = columns - n <= kLanes<T>;
    const GemmTile<T>* tiles = narrow ? kGemmTiles<T, 1> : kGemmTiles<T, 2>;
    const int64_t width = narrow ? kLanes<T> : kPanel<T>;
    int64_t length;
    for (int64_t k = 0; k < depth; k += length) {
      // Short runs are taken whole, several at a time; of long ones a part at a time.
      const int64_t in_run = k % a.run, most = a.run < kDepth<T> ? kDepth<T> / a.run * a.run
                                               : a.run - in_run < kDepth<T> ? a.run - in_run
                                                                            : kDepth<T>;
      length = depth - k < most ? depth - k : most;
      const T* a_column = a.data + k / a.run * a.next_run + in_run * a.column;
      for (int64_t block = 0, m = 0; block < blocks; ++block) {
        const int64_t height = (rows - m + blocks - block - 1) / (blocks - block);
        const GemmOperand<T> part{a_column + m * a.row, a.row, a.column, a.run, a.next_run};
        T* to = c + m * c_row + n;
        if (columns - n >= width) {
          tiles[height - 1](length, part, b + k * kPanel<T>, to, c_row, add || k > 0);
        } else {
          gemm_edge(tiles[height - 1], height, columns - n, length, part, b + k * kPanel<T>, to,
                    c_row, add || k > 0);
        }
        m += height;
      }
    }
  }
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
