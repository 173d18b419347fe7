// Matrix multiply (GEMM) of matrices that stay in the caches. A convolution spends most of its time
// here.
//
// C [m][n] += sum over k of A [m][k] * B [k][n]. A is read number by number, with any strides. B is
// stored in panels: each has kPanel neighbouring numbers of every row, and is stored row by row.
// The micro-kernel keeps kMicroRows x kPanel numbers of C in registers while it goes along k, with
// one broadcast of A and two fused multiply-adds per row. Each number of C is summed in the order
// of k, however C is cut.
#pragma once

#include "simd.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Rows of C per micro-kernel: besides their accumulators, a row of B and a number of A fit into
// registers.
constexpr int kMicroRows = kRegisters == 32 ? 14 : 6;

template <typename T>
constexpr int kPanel = 2 * kLanes<T>;

// Rows of a panel that stay in the L1 cache while all rows of A are multiplied by them.
template <typename T>
constexpr int64_t kDepth = 24576 / int64_t(kPanel<T> * sizeof(T)) / kPanel<T> * kPanel<T>;

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// A: number (m, k) is at data[m * stride_m + k / run * run_stride + k % run * stride_k].
template <typename T>
struct GemmOperand {
  const T* data;
  int64_t stride_m, stride_k, run, run_stride;
};

// `rows` rows and `vectors` vectors of C. k starts at the beginning of a run of A, or stays within
// one run.
template <typename T, int rows, int vectors>
void gemm_micro_kernel(int64_t depth, const GemmOperand<T>& a, const T* b, T* c, int64_t c_row,
                       bool add) {
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
  for (int64_t left = depth; left > 0; left -= a.run, first += a.run_stride) {
    const int64_t run = left < a.run ? left : a.run;
    const T* from = first;
    for (int64_t k = 0; k < run; ++k, from += a.stride_k, b += kPanel<T>) {
      Vector<T> row[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        row[v] = load(b + v * lanes);
        // Into the L2 cache: what follows the rows of B that are in the L1 cache.
        __builtin_prefetch(b + kDepth<T> * kPanel<T> + v * lanes, 0, 2);
      }
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        const T factor = from[m * a.stride_m];
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
using GemmMicroKernel = void (*)(int64_t, const GemmOperand<T>&, const T*, T*, int64_t, bool);

// kGemmMicroKernels[vectors - 1][rows - 1]
template <typename T, int vectors, typename Rows>
struct GemmMicroKernelsOfWidth;
template <typename T, int vectors, int... row>
struct GemmMicroKernelsOfWidth<T, vectors, std::integer_sequence<int, row...>> {
  static constexpr GemmMicroKernel<T> micro_kernels[] = {gemm_micro_kernel<T, row + 1, vectors>...};
};
template <typename T, int vectors>
constexpr const GemmMicroKernel<T>* kGemmMicroKernels =
    GemmMicroKernelsOfWidth<T, vectors, std::make_integer_sequence<int, kMicroRows>>::micro_kernels;

// The same at the right edge of C: touches only `width` numbers of a row, fewer than the
// micro-kernel does.
template <typename T>
void gemm_edge(GemmMicroKernel<T> micro_kernel, int64_t rows, int64_t width, int64_t depth,
               const GemmOperand<T>& a, const T* b, T* c, int64_t c_row, bool add) {
  T edge[kMicroRows * kPanel<T>];
  for (int64_t m = 0; add && m < rows; ++m) {
    for (int64_t n = 0; n < width; ++n) edge[m * kPanel<T> + n] = c[m * c_row + n];
  }
  micro_kernel(depth, a, b, edge, kPanel<T>, add);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < width; ++n) c[m * c_row + n] = edge[m * kPanel<T> + n];
  }
}

// How far along k, from `k` on, one call of a micro-kernel goes: several short runs of A, whole, or
// kDepth numbers of a long run or the rest of it.
template <typename T>
int64_t gemm_depth(int64_t k, int64_t depth, int64_t run) {
  int64_t most = kDepth<T>;
  if (run < kDepth<T>) {
    most = kDepth<T> / run * run;
  } else if (run - k % run < kDepth<T>) {
    most = run - k % run;
  }
  return depth - k < most ? depth - k : most;
}

// C (+)= A * B. C has `rows` rows of `width` numbers, c_row numbers apart; panels of B are b_panel
// numbers apart.
template <typename T>
void gemm(int64_t rows, int64_t width, int64_t depth, const GemmOperand<T>& a, const T* b,
          int64_t b_panel, T* c, int64_t c_row, bool add) {
  const int64_t calls = (rows + kMicroRows - 1) / kMicroRows;
  for (int64_t n = 0; n < width; n += kPanel<T>, b += b_panel) {
    const bool narrow = width - n <= kLanes<T>;
    const GemmMicroKernel<T>* micro_kernels =
        narrow ? kGemmMicroKernels<T, 1> : kGemmMicroKernels<T, 2>;
    const bool whole = width - n >= (narrow ? kLanes<T> : kPanel<T>);
    int64_t length;
    for (int64_t k = 0; k < depth; k += length) {
      length = gemm_depth<T>(k, depth, a.run);
      const T* from = a.data + k / a.run * a.run_stride + k % a.run * a.stride_k;
      for (int64_t call = 0, m = 0; call < calls; ++call) {
        const int64_t height = (rows - m + calls - call - 1) / (calls - call);
        const GemmOperand<T> operand{from + m * a.stride_m, a.stride_m, a.stride_k, a.run,
                                     a.run_stride};
        T* to = c + m * c_row + n;
        if (whole) {
          micro_kernels[height - 1](length, operand, b + k * kPanel<T>, to, c_row, add || k > 0);
        } else {
          gemm_edge(micro_kernels[height - 1], height, width - n, length, operand,
                    b + k * kPanel<T>, to, c_row, add || k > 0);
        }
        m += height;
      }
    }
  }
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
