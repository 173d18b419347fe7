// Transposes matrices, to convert between (C, H, W) and channels-last.
#pragma once

#include "simd.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// to[c * to_stride + r] = from[r * from_stride + c], for r < rows, c < columns.
template <typename T>
void transpose(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
               int64_t columns) {
  constexpr int lanes = kLanes<T>;
  for (int64_t r0 = 0; r0 < rows; r0 += lanes) {
    const int64_t r1 = r0 + lanes < rows ? r0 + lanes : rows;
    for (int64_t c0 = 0; c0 < columns; c0 += lanes) {
      const int64_t c1 = c0 + lanes < columns ? c0 + lanes : columns;
      if (r1 - r0 == lanes && c1 - c0 == lanes) {
        Vector<T> square[lanes];
#pragma GCC unroll 16
        for (int k = 0; k < lanes; ++k) square[k] = load(from + (r0 + k) * from_stride + c0);
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (int k = 0; k < lanes; ++k) store(to + (c0 + k) * to_stride + r0, square[k]);
      } else {
        for (int64_t c = c0; c < c1; ++c) {
          for (int64_t r = r0; r < r1; ++r) to[c * to_stride + r] = from[r * from_stride + c];
        }
      }
    }
  }
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
