// A kernel for test_simt.py, of no operator, that uses everything that a block kernel can.
#pragma once

#include "cuda/launch.h"
#include "cuda/simt.h"

namespace d2_deformable {

// Sums of a matrix's rows, and of all of them. A block sums one row: each thread several packs of
// it, the warps through shared memory. It owns the row's place in sums; all blocks add to total.
template <typename scalar_t, typename acc_t>
struct RowSumsKernel {
  static constexpr int kWarps = 3;

  int64_t rows, columns;   // columns: a multiple of a pack
  const scalar_t* matrix;  // [rows][columns]
  scalar_t* copy;          // [rows][columns]
  acc_t* sums;             // [rows]
  acc_t* total;            // [1]
  float* totals;           // [4]: added up in float32

  Grid grid() const { return {rows, 32 * kWarps, int64_t(kWarps * sizeof(acc_t))}; }

  D2_DEVICE void operator()() const {
    D2_SHARED(acc_t, warp_sums);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
      acc_t sum = 0;
      constexpr int kPack = Pack<scalar_t>::kSize;
      for (int64_t c = threadIdx.x * kPack; c < columns; c += blockDim.x * kPack) {
        const auto pack = Pack<scalar_t>::load_constant(matrix + row * columns + c);
        for (int k = 0; k < kPack; ++k) sum += acc_t(pack[k]);
        pack.store(copy + row * columns + c);
      }
      sum = warp_sum(sum);
      if (lane == 0) warp_sums[warp] = sum;
      __syncthreads();  // the sums of all warps are there
      if (threadIdx.x == 0) {
        acc_t row_sum = 0;
        for (int w = 0; w < kWarps; ++w) row_sum += warp_sums[w];
        sums[row] = row_sum;
        atomic_add(total, row_sum);
        atomic_add4(totals, row_sum, row_sum, 1, 0);
      }
      __syncthreads();  // and may be overwritten
    }
  }
};

}  // namespace d2_deformable
