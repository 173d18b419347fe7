// Sizes of a deformable convolution, and where its taps read. For host and device; free of ATen.
#pragma once

#include <cstdint>

#include "sampling.h"

namespace d2_deformable {

struct DeformConv2dSizes {
  int64_t images, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups, offset_groups;
  Border border;

  D2_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }
  D2_HOST_DEVICE int64_t image_rows() const { return out_height * out_width; }
  D2_HOST_DEVICE int64_t rows() const { return images * image_rows(); }
};

// Equation (2) of the paper: tap (tap_y, tap_x) of output position (out_y, out_x) reads at
// p0 + p_n + offset. Returns false if that lies outside: the tap reads 0.
template <typename T>
D2_HOST_DEVICE bool sample_tap(const DeformConv2dSizes& s, int64_t out_y, int64_t out_x,
                               int64_t tap_y, int64_t tap_x, T offset_y, T offset_x,
                               AxisSample<T>& y, AxisSample<T>& x) {
  const int64_t grid_y = out_y * s.stride_h - s.padding_h + tap_y * s.dilation_h;
  const int64_t grid_x = out_x * s.stride_w - s.padding_w + tap_x * s.dilation_w;
  const bool inside_y = sample_axis(T(grid_y) + offset_y, s.height, s.border, y);
  const bool inside_x = sample_axis(T(grid_x) + offset_x, s.width, s.border, x);
  return inside_y && inside_x;
}

}  // namespace d2_deformable
