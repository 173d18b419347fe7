// Where the taps of a deformable convolution read, for many output positions at once. Their offsets
// are next to each other in memory, so coordinates, indices and weights are computed in vectors.
// All channels of an offset group share the sampling points.
#pragma once

#include "../../geometry/deform_conv2d_geometry.h"
#include "simd.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

constexpr int kPositions = 32;  // at once: their sampling points stay in the L1 cache

// Output positions first .. first + count of an image, and the coordinates of their top left taps.
struct Positions {
  int64_t first;
  int count;
  int32_t y[kPositions], x[kPositions];

  Positions(const DeformConv2dSizes& s, int64_t first, int64_t count)
      : first(first), count(int(count)) {
    int64_t out_y = first / s.out_width, out_x = first % s.out_width;
    for (int p = 0; p < this->count; ++p) {
      y[p] = int32_t(out_y * s.stride_h - s.padding_h);
      x[p] = int32_t(out_x * s.stride_w - s.padding_w);
      if (++out_x == s.out_width) out_x = 0, ++out_y;
    }
  }
};

// The map to read: pixel (y, x) begins at data + (y * width + x) * stride.
template <typename T>
struct PixelMap {
  const T* data;
  // A pixel of zeros, read instead of pixels of weight 0: 0 * infinity would not be 0.
  const T* zeros;
  int64_t stride;
};

template <typename T>
struct SamplingPoints {
  const T* pixel[4][kPositions];  // corners (y0, x0), (y0, x1), (y1, x0), (y1, x1)
  T weight[4][kPositions];        // times the mask
};

// What the gradients of offset and mask need in addition. Each gradient is a sum over the corners
// of one of these times (pixel . gradient of the column).
template <typename T>
struct SamplingSlopes {
  T y[4][kPositions], x[4][kPositions];  // derivatives of weight with respect to the coordinates
  T mask[4][kPositions];                 // the weight itself, without the mask
};

// Computes the sampling points of one tap, for one image and offset group. offset: y [Ho][Wo], then
// x [Ho][Wo]; mask: [Ho][Wo], or null. slopes: null unless gradients are needed.
template <typename T, Border border, bool gradients>
void find_points(const DeformConv2dSizes& s, const Positions& positions, int64_t tap,
                 const T* offset, const T* mask, const PixelMap<T>& map, SamplingPoints<T>& points,
                 SamplingSlopes<T>* slopes) {
  const int32_t tap_y = int32_t(tap / s.kernel_w * s.dilation_h);
  const int32_t tap_x = int32_t(tap % s.kernel_w * s.dilation_w);
  const int32_t height = int32_t(s.height), width = int32_t(s.width);
  const int64_t stride = map.stride, row_stride = s.width * map.stride;
  const T* offset_y = offset + positions.first;
  const T* offset_x = offset_y + s.image_rows();
#pragma GCC ivdep
  for (int p = 0; p < positions.count; ++p) {
    AxisSample<T> y, x;
    const bool in_y = sample_axis(T(positions.y[p] + tap_y) + offset_y[p], height, border, y);
    const bool in_x = sample_axis(T(positions.x[p] + tap_x) + offset_x[p], width, border, x);
    const T inside = in_y & in_x ? T(1) : T(0);
    const T factor = mask ? mask[positions.first + p] : T(1);
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
      const int a = corner / 2, b = corner % 2;
      const T weight = inside * y.weight[a] * x.weight[b];
      bool counts = weight != T(0);
      if constexpr (gradients) {
        const T slope_y = inside * y.slope[a] * x.weight[b];
        const T slope_x = inside * y.weight[a] * x.slope[b];
        counts = counts | (slope_y != T(0)) | (slope_x != T(0));
        slopes->y[corner][p] = factor * slope_y;
        slopes->x[corner][p] = factor * slope_x;
        slopes->mask[corner][p] = weight;
      }
      const int64_t at = y.index[a] * row_stride + x.index[b] * stride;
      points.pixel[corner][p] = counts ? map.data + at : map.zeros;
      points.weight[corner][p] = factor * weight;
    }
  }
}

template <typename T>
void find_points(const DeformConv2dSizes& s, const Positions& positions, int64_t tap,
                 const T* offset, const T* mask, const PixelMap<T>& map,
                 SamplingPoints<T>& points) {
  const auto run = s.border == Border::kZero ? find_points<T, Border::kZero, false>
                                             : find_points<T, Border::kLegacy, false>;
  run(s, positions, tap, offset, mask, map, points, nullptr);
}
template <typename T>
void find_points(const DeformConv2dSizes& s, const Positions& positions, int64_t tap,
                 const T* offset, const T* mask, const PixelMap<T>& map, SamplingPoints<T>& points,
                 SamplingSlopes<T>& slopes) {
  const auto run = s.border == Border::kZero ? find_points<T, Border::kZero, true>
                                             : find_points<T, Border::kLegacy, true>;
  run(s, positions, tap, offset, mask, map, points, &slopes);
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
