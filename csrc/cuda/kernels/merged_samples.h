// The merged weights of geometry/bin_axis.h, computed by walking along one axis from sample to
// sample. Each different pixel of a bin is read once: 9 to 36 pixels in the bins of detectors,
// instead of 64 reads of 4 x 4 bilinear samples. That pays because each thread has its own bin:
// random reads of shared memory cause bank conflicts, and adds to it even more of them.
//
// A list of the different pixels would be an array with run-time indices, which the compiler puts
// in local memory, not in registers. So rows come out of a loop, one after another. Columns are in
// registers, for four samples at a time, at indices known at compile time.
#pragma once

#include "../../geometry/bin_axis.h"
#include "../simt.h"

namespace d2_deformable {

// The sampling grid of one bin.
template <typename T>
struct BinSamples {
  BinSampling<T> y, x;
  int32_t height, width;  // of the map, below 2^24

  // What the mean divides by.
  D2_DEVICE T count() const {
    if (y.rule == RoiSampling::kAlign) return y.divisor * x.divisor;
    T rows = 0, columns = 0;
#pragma unroll 1
    for (int32_t k = 0; k < y.samples; ++k) {  // as many as of x
      AxisSample<T> sample;
      if (sample_axis_clamped(y.start + T(k) * y.step, height, y.rule, sample)) rows += T(1);
      if (sample_axis_clamped(x.start + T(k) * x.step, width, x.rule, sample)) columns += T(1);
    }
    return rows * columns;
  }

  // Calls visit(columns, y, weight, slope) for each window of columns and, in it, each different
  // row. With kSlopes, also for rows with a slope but no weight.
  template <bool kSlopes, typename Visit>
  D2_DEVICE void for_each_row(const Visit& visit) const;
};

// Whether a pixel is visited.
template <bool kSlopes, typename T>
D2_DEVICE bool counts(T weight, T slope) {
  return weight != T(0) || (kSlopes && slope != T(0));
}

// Calls visit(pixel, weight, slope) for each different pixel of one axis, in ascending order. With
// kSlopes, also for pixels with a slope but no weight.
template <bool kSlopes, typename T, typename Visit>
D2_DEVICE void for_each_pixel(const BinSampling<T>& sampling, int32_t size, const Visit& visit) {
  int32_t pixel = 0;
  T weight[2] = {T(0), T(0)}, slope[2] = {T(0), T(0)};  // so far, of pixel and pixel + 1
#pragma unroll 1
  for (int32_t k = 0; k <= sampling.samples; ++k) {
    AxisSample<T> sample;
    sample.index[0] = size;  // after the last sample, so that all are visited
    const bool last = k == sampling.samples;
    if (!last &&
        !sample_axis_clamped(sampling.start + T(k) * sampling.step, size, sampling.rule, sample)) {
      continue;
    }
    // Visits `pixel` and `pixel + 1` at most: pixels that no sample reaches have weight 0.
#pragma unroll 1
    for (; pixel < sample.index[0] && counts<kSlopes>(weight[0], slope[0]); ++pixel) {
      visit(pixel, weight[0], slope[0]);
      weight[0] = weight[1], slope[0] = slope[1];
      weight[1] = slope[1] = T(0);
    }
    if (last) break;
    pixel = sample.index[0];
    for (int a = 0; a < 2; ++a) weight[a] += sample.weight[a], slope[a] += sample.slope[a];
  }
}

// A window: the columns of up to four consecutive samples, low[k] and low[k] + 1, with their
// weights and slopes. Where two samples share a column, the later one has its weight and the
// earlier one 0.
template <typename T>
struct ColumnWindow {
  static constexpr int kSamples = 4;
  int32_t low[kSamples];
  T weight[kSamples][2], slope[kSamples][2];

  D2_DEVICE ColumnWindow(const BinSampling<T>& sampling, int32_t first, int32_t size) {
#pragma unroll
    for (int k = 0; k < kSamples; ++k) {
      AxisSample<T> sample;
      const bool inside = sample_axis_clamped(sampling.start + T(first + k) * sampling.step, size,
                                              sampling.rule, sample);
      const bool reads = inside && first + k < sampling.samples;
      low[k] = sample.index[0];
      for (int a = 0; a < 2; ++a) {
        weight[k][a] = reads ? sample.weight[a] : T(0);
        slope[k][a] = reads ? sample.slope[a] : T(0);
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

  // Calls visit(column, weight, slope) for each different column. With kSlopes, also for columns
  // with a slope but no weight.
  template <bool kSlopes, typename Visit>
  D2_DEVICE void for_each(const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < kSamples; ++k) {
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        if (counts<kSlopes>(weight[k][a], slope[k][a])) {
          visit(low[k] + a, weight[k][a], slope[k][a]);
        }
      }
    }
  }

 private:
  D2_DEVICE void move(int k, int from, int to) {
    weight[k][to] += weight[k - 1][from], slope[k][to] += slope[k - 1][from];
    weight[k - 1][from] = slope[k - 1][from] = T(0);
  }
};

template <typename T>
template <bool kSlopes, typename Visit>
D2_DEVICE void BinSamples<T>::for_each_row(const Visit& visit) const {
#pragma unroll 1
  for (int32_t first = 0; first < x.samples; first += ColumnWindow<T>::kSamples) {
    const ColumnWindow<T> columns(x, first, width);
    for_each_pixel<kSlopes>(
        y, height, [&](int32_t row, T weight, T slope) { visit(columns, row, weight, slope); });
  }
}

}  // namespace d2_deformable
