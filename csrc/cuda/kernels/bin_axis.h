// The samples of a bin are a product of two axes, and whether one counts is decided per axis. So
//
//   sum over samples of  map[y][x]  =  sum over rows of  A_y * sum over columns of  A_x * map[y][x]
//
// where A are the weights of all samples that reach a row or column, added up; and alike for the
// derivatives, with slopes in the place of weights. Of the 64 pixels that 4 x 4 bilinear samples
// read, 9 to 36 are different ones in the bins of detectors. Random reads of shared memory meet in
// its banks, so fewer of them is what counts; a list of the different pixels, however, would be an
// array that each thread indexes, which is in no register but in local memory. Hence rows come one
// after another out of a loop, and columns stand in registers: those of four samples at a time, all
// indices known to the compiler.
#pragma once

#include "../../sampling.h"
#include "../simt.h"

namespace d2_deformable {

// Calls visit(pixel, weight, slope) for each different pixel of one axis, in ascending order.
template <typename T, typename Visit>
D2_DEVICE void for_each_pixel(T start, T step, int64_t samples, int32_t size, const Visit& visit) {
  int32_t pixel = 0;
  T weight[2] = {T(0), T(0)}, slope[2] = {T(0), T(0)};  // so far, of pixel and of its neighbour
  for (int64_t k = 0; k <= samples; ++k) {
    AxisSample<T> sample;
    sample.index[0] = size;  // after the last sample, none waits for more
    const bool last = k == samples;
    if (!last && !sample_axis_clamped(start + T(k) * step, size, sample)) continue;
    // A pixel that a sample reaches has a weight; the third one on has none.
    for (; pixel < sample.index[0] && weight[0] != T(0); ++pixel) {
      visit(pixel, weight[0], slope[0]);
      weight[0] = weight[1], slope[0] = slope[1];
      weight[1] = slope[1] = T(0);
    }
    if (last) break;
    pixel = sample.index[0];
    for (int a = 0; a < 2; ++a) weight[a] += sample.weight[a], slope[a] += sample.slope[a];
  }
}

// The columns of up to four neighbouring samples: low[k] and low[k] + 1 with their weights and
// slopes. What two samples have in common stands with the later one; the earlier one's weight is 0.
template <typename T>
struct ColumnWindow {
  static constexpr int kSamples = 4;
  int32_t low[kSamples];
  T weight[kSamples][2], slope[kSamples][2];

  D2_DEVICE ColumnWindow(T start, T step, int64_t first, int64_t samples, int32_t size) {
#pragma unroll
    for (int k = 0; k < kSamples; ++k) {
      AxisSample<T> sample;
      const bool inside = sample_axis_clamped(start + T(first + k) * step, size, sample);
      const bool counts = inside && first + k < samples;
      low[k] = sample.index[0];
      for (int a = 0; a < 2; ++a) {
        weight[k][a] = counts ? sample.weight[a] : T(0);
        slope[k][a] = counts ? sample.slope[a] : T(0);
      }
    }
#pragma unroll
    for (int k = 1; k < kSamples; ++k) {
      const int32_t ahead = low[k] - low[k - 1];
      if (ahead == 0) move(k, 0, 0);
      if (ahead == 0) move(k, 1, 1);
      if (ahead == 1) move(k, 1, 0);
    }
  }

  // Calls visit(column, weight, slope) for each different column.
  template <typename Visit>
  D2_DEVICE void for_each(const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < kSamples; ++k) {
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        if (weight[k][a] != T(0)) visit(low[k] + a, weight[k][a], slope[k][a]);
      }
    }
  }

 private:
  D2_DEVICE void move(int k, int from, int to) {
    weight[k][to] += weight[k - 1][from], slope[k][to] += slope[k - 1][from];
    weight[k - 1][from] = slope[k - 1][from] = T(0);
  }
};

// Calls visit(columns, y, weight, slope) for each window of columns and each different row of it.
template <typename T, typename Bin, typename Visit>
D2_DEVICE void for_each_row(const Bin& bin, int64_t samples, int32_t height, int32_t width,
                            const Visit& visit) {
  for (int64_t first = 0; first < samples; first += ColumnWindow<T>::kSamples) {
    const ColumnWindow<T> columns(bin.start_x, bin.step_x, first, samples, width);
    for_each_pixel(
        bin.start_y, bin.step_y, samples, height,
        [&](int32_t y, T weight, T slope) { visit(columns, y, weight, slope); });
  }
}

}  // namespace d2_deformable
