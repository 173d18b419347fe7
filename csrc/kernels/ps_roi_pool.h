// Kernel bodies of ps_roi_pool: one functor per kernel, for host and device, free of ATen.
//
// Maps are group-major channels-last, [N][H][W][bin][Ctop]: the channels that a bin reads are
// neighbours in memory. scalar_t is the type of maps, acc_t that of coordinates and sums: at least
// float32.
#pragma once

#include "../geometry/ps_roi_pool.h"
#include "channels.h"

namespace d2_deformable {

// Position-sensitive average pooling. One call averages one bin for one block of channels,
// i = (roi, bin, channel block). No two calls write the same place.
template <typename scalar_t, typename acc_t>
struct PsRoiPoolKernel {
  PsRoiPoolSizes sizes;
  ChannelBlocks blocks;
  const scalar_t* input;  // [N][H][W][bin][Ctop]
  const acc_t* rois;      // [R][5]
  acc_t* output;          // [R][bins_h][bins_w][Ctop]

  D2_HOST_DEVICE int64_t count() const { return sizes.rois * sizes.bins() * blocks.count(); }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t block = i % blocks.count(), roi_bin = i / blocks.count();
    const PsRoiBin<acc_t> bin(sizes, rois, roi_bin / sizes.bins(), roi_bin % sizes.bins());
    const int64_t channel = blocks.begin(block), channels = blocks.length(block);
    acc_t* out = output + roi_bin * sizes.top_channels + channel;
    for (int64_t c = 0; c < channels; ++c) out[c] = acc_t(0);
    for (int64_t y = bin.y_begin; y < bin.y_end; ++y) {
      for (int64_t x = bin.x_begin; x < bin.x_end; ++x) {
        const scalar_t* pixel =
            input + bin.map + (y * sizes.width + x) * sizes.pixel_stride() + channel;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) out[c] += acc_t(pixel[c]);
      }
    }
    if (bin.area() == 0) return;
    for (int64_t c = 0; c < channels; ++c) out[c] /= acc_t(bin.area());
  }
};

// Gradient of the input. One call spreads one bin's gradient over its pixels for one block of
// channels, i = (roi, bin, channel block). Other RoIs reach the same pixels: hence Add, atomic
// where threads share an image's channels.
template <typename scalar_t, typename acc_t, typename Add>
struct PsRoiPoolInputGradientKernel {
  PsRoiPoolSizes sizes;
  ChannelBlocks blocks;
  const scalar_t* grad_output;  // [R][bins_h][bins_w][Ctop]
  const acc_t* rois;            // [R][5]
  acc_t* grad_input;            // [N][H][W][bin][Ctop]
  Add add;

  D2_HOST_DEVICE int64_t count() const { return sizes.rois * sizes.bins() * blocks.count(); }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t block = i % blocks.count(), roi_bin = i / blocks.count();
    const int64_t channel = blocks.begin(block), channels = blocks.length(block);
    const scalar_t* grad = grad_output + roi_bin * sizes.top_channels + channel;
    if (all_zero<acc_t>(grad, channels)) return;
    const PsRoiBin<acc_t> bin(sizes, rois, roi_bin / sizes.bins(), roi_bin % sizes.bins());
    for (int64_t y = bin.y_begin; y < bin.y_end; ++y) {
      for (int64_t x = bin.x_begin; x < bin.x_end; ++x) {
        acc_t* pixel =
            grad_input + bin.map + (y * sizes.width + x) * sizes.pixel_stride() + channel;
        for (int64_t c = 0; c < channels; ++c) add(pixel + c, acc_t(grad[c]) / acc_t(bin.area()));
      }
    }
  }
};

}  // namespace d2_deformable
