// Kernel bodies of ps_roi_pool: one functor per kernel, for host and device, free of ATen.
//
// Maps are group-major channels-last, [N][H][W][bin][Ctop]: the channels that a bin reads are
// neighbours in memory. scalar_t is the type of maps, acc_t that of coordinates and sums: at least
// float32.
#pragma once

#include "channels.h"
#include "roi.h"

namespace d2_deformable {

struct PsRoiPoolSizes {
  int64_t images, top_channels, height, width;
  int64_t rois, bins_h, bins_w;
  double spatial_scale;
  bool round_rois;

  D2_HOST_DEVICE int64_t bins() const { return bins_h * bins_w; }
  D2_HOST_DEVICE int64_t pixel_stride() const { return bins() * top_channels; }
};

// The map pixels of one bin of one RoI, whole pixels from floor to ceil, cut to the map.
template <typename acc_t>
struct PsRoiBin {
  int64_t y_begin, y_end, x_begin, x_end;
  int64_t map;  // of the image's first pixel, at the bin's channels

  D2_HOST_DEVICE PsRoiBin(const PsRoiPoolSizes& s, const acc_t* rois, int64_t roi, int64_t bin) {
    const RoiBox<acc_t> box(rois + roi * 5, s.images, acc_t(s.spatial_scale), acc_t(0),
                            s.round_rois);
    const int64_t bin_y = bin / s.bins_w, bin_x = bin % s.bins_w;
    const acc_t bin_height = box.height / acc_t(s.bins_h), bin_width = box.width / acc_t(s.bins_w);
    y_begin = floor_inside(acc_t(bin_y) * bin_height + box.y, s.height);
    y_end = ceil_inside(acc_t(bin_y + 1) * bin_height + box.y, s.height);
    x_begin = floor_inside(acc_t(bin_x) * bin_width + box.x, s.width);
    x_end = ceil_inside(acc_t(bin_x + 1) * bin_width + box.x, s.width);
    map = (box.image * s.height * s.width * s.bins() + bin) * s.top_channels;
  }

  D2_HOST_DEVICE int64_t area() const {
    return y_end > y_begin && x_end > x_begin ? (y_end - y_begin) * (x_end - x_begin) : 0;
  }

  // Bounds are tested before the number becomes an integer; NaN counts as 0.
  D2_HOST_DEVICE static acc_t inside(acc_t value, int64_t size) {
    return value > acc_t(0) ? (value < acc_t(size) ? value : acc_t(size)) : acc_t(0);
  }
  D2_HOST_DEVICE static int64_t floor_inside(acc_t value, int64_t size) {
    return int64_t(inside(value, size));
  }
  D2_HOST_DEVICE static int64_t ceil_inside(acc_t value, int64_t size) {
    const int64_t floor = floor_inside(value, size);
    return floor + (inside(value, size) > acc_t(floor) ? 1 : 0);
  }
};

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
