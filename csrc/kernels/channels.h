// How kernels share out channels, and the loops over neighbouring channels in which they spend
// their time. Maps are channels-last here: the channels of a pixel are neighbours in memory, so
// coordinates and weights are computed once and the inner loops are plain vector arithmetic.
#pragma once

#include <cstdint>

#include "../sampling.h"

namespace d2_deformable {

// All channels, cut into units that share their sampling points (an offset group, a class), and
// each unit into blocks. A kernel call works on one block: on the CPU a long one, for vector loops;
// CUDA may take short ones, so that neighbouring threads read neighbouring channels.
struct ChannelBlocks {
  int64_t units;
  int64_t unit;      // channels per unit
  int64_t size;      // channels per block; the last one of a unit may be shorter
  int64_t per_unit;  // blocks per unit

  D2_HOST_DEVICE ChannelBlocks(int64_t channels, int64_t unit_channels, int64_t block_channels)
      : units(channels / unit_channels),
        unit(unit_channels),
        size(block_channels < unit_channels ? block_channels : unit_channels),
        per_unit((unit_channels + size - 1) / size) {}

  D2_HOST_DEVICE int64_t count() const { return units * per_unit; }
  D2_HOST_DEVICE int64_t begin(int64_t block) const {
    return block / per_unit * unit + block % per_unit * size;
  }
  D2_HOST_DEVICE int64_t length(int64_t block) const {
    const int64_t rest = unit - block % per_unit * size;
    return rest < size ? rest : size;
  }
};

// The four pixels of a bilinear sample, order (y0 x0), (y0 x1), (y1 x0), (y1 x1).
template <typename T>
struct Corners {
  int64_t offset[4];  // of the pixel's first channel
  T weight[4];
  T slope_y[4];
  T slope_x[4];

  D2_HOST_DEVICE Corners(const AxisSample<T>& y, const AxisSample<T>& x, int64_t row_stride,
                         int64_t pixel_stride) {
    for (int corner = 0; corner < 4; ++corner) {
      const int a = corner >> 1, b = corner & 1;
      offset[corner] = y.index[a] * row_stride + x.index[b] * pixel_stride;
      weight[corner] = y.weight[a] * x.weight[b];
      slope_y[corner] = y.slope[a] * x.weight[b];
      slope_x[corner] = y.weight[a] * x.slope[b];
    }
  }
};

// Calls store(c, value) with each channel's bilinear value.
template <typename acc_t, typename scalar_t, typename Store>
D2_HOST_DEVICE void interpolate(const scalar_t* map, const Corners<acc_t>& corners,
                                int64_t channels, Store store) {
  const scalar_t* p0 = map + corners.offset[0];
  const scalar_t* p1 = map + corners.offset[1];
  const scalar_t* p2 = map + corners.offset[2];
  const scalar_t* p3 = map + corners.offset[3];
  const acc_t w0 = corners.weight[0], w1 = corners.weight[1];
  const acc_t w2 = corners.weight[2], w3 = corners.weight[3];
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    store(c, w0 * acc_t(p0[c]) + w1 * acc_t(p1[c]) + w2 * acc_t(p2[c]) + w3 * acc_t(p3[c]));
  }
}

// dots[k] += sum over channels of grad * (pixel of corner k). All the gradients of a sample by its
// coordinates and its factor are weighted sums of these four numbers.
template <typename acc_t, typename scalar_t>
D2_HOST_DEVICE void add_corner_dots(const scalar_t* grad, const scalar_t* map,
                                    const Corners<acc_t>& corners, int64_t channels,
                                    acc_t (&dots)[4]) {
  const scalar_t* p0 = map + corners.offset[0];
  const scalar_t* p1 = map + corners.offset[1];
  const scalar_t* p2 = map + corners.offset[2];
  const scalar_t* p3 = map + corners.offset[3];
  acc_t d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
  for (int64_t c = 0; c < channels; ++c) {
    const acc_t g = acc_t(grad[c]);
    d0 += g * acc_t(p0[c]);
    d1 += g * acc_t(p1[c]);
    d2 += g * acc_t(p2[c]);
    d3 += g * acc_t(p3[c]);
  }
  dots[0] += d0, dots[1] += d1, dots[2] += d2, dots[3] += d3;
}

template <typename T>
D2_HOST_DEVICE T weighted_sum(const T (&weight)[4], const T (&value)[4]) {
  return weight[0] * value[0] + weight[1] * value[1] + weight[2] * value[2] + weight[3] * value[3];
}

// Adds scale * weight * grad to the pixel of each corner that has a weight.
template <typename Add, typename acc_t, typename grad_t>
D2_HOST_DEVICE void scatter_to_corners(acc_t* map, const Corners<acc_t>& corners,
                                       const grad_t* grad, acc_t scale, int64_t channels, Add add) {
  for (int corner = 0; corner < 4; ++corner) {
    const acc_t weight = scale * corners.weight[corner];
    if (weight == acc_t(0)) continue;
    acc_t* pixel = map + corners.offset[corner];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) add(pixel + c, weight * acc_t(grad[c]));
  }
}

template <typename acc_t, typename scalar_t>
D2_HOST_DEVICE bool all_zero(const scalar_t* values, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    if (!(acc_t(values[c]) == acc_t(0))) return false;
  }
  return true;
}

}  // namespace d2_deformable
