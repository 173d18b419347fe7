// Kernel bodies of deform_roi_pool: one functor per kernel, for host and device, free of ATen.
//
// Maps are group-major channels-last, [N][H][W][group][Ctop]: a position-sensitive bin reads the
// channels of its own group only, and these are neighbours in memory. Ctop = C / group_size^2.
// scalar_t is the type of maps, acc_t that of coordinates and sums: at least float32.
#pragma once

#include "../geometry/deform_roi_pool.h"
#include "channels.h"

namespace d2_deformable {

// Equation (5) of the paper. One call averages the samples of one bin for one block of channels of
// one class: i = (roi, bin, channel block). No two calls write the same place.
template <typename scalar_t, typename acc_t>
struct DeformRoiPoolKernel {
  DeformRoiPoolSizes sizes;
  ChannelBlocks blocks;
  const scalar_t* input;  // [N][H][W][group][Ctop]
  const acc_t* rois;      // [R][5]
  const acc_t* offset;    // [R][classes][y, x][parts_h][parts_w], or null: no shift
  acc_t* output;          // [R][bins_h][bins_w][Ctop]

  D2_HOST_DEVICE int64_t count() const { return sizes.rois * sizes.bins() * blocks.count(); }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t block = i % blocks.count(), roi_bin = i / blocks.count();
    const DeformRoiBin<acc_t> bin(sizes, rois, offset, roi_bin / sizes.bins(),
                                  roi_bin % sizes.bins(), block / blocks.per_unit);
    const int64_t channel = blocks.begin(block), channels = blocks.length(block);
    const scalar_t* map = input + bin.map + channel;
    acc_t* out = output + roi_bin * sizes.top_channels + channel;
    for (int64_t c = 0; c < channels; ++c) out[c] = acc_t(0);
    const int64_t samples =
        bin.for_each_sample(sizes, [&](const AxisSample<acc_t>& y, const AxisSample<acc_t>& x) {
          const Corners<acc_t> corners(y, x, sizes.row_stride(), sizes.pixel_stride());
          interpolate(map, corners, channels, [=](int64_t c, acc_t value) { out[c] += value; });
        });
    if (samples == 0) return;
    for (int64_t c = 0; c < channels; ++c) out[c] /= acc_t(samples);
  }
};

// Gradient of the input. One call takes one bin and one block of channels, i = (roi, bin, channel
// block), and scatters to the pixels of its samples, which other RoIs and bins reach too: hence
// Add, atomic where threads share an image's channels.
template <typename scalar_t, typename acc_t, typename Add>
struct DeformRoiPoolInputGradientKernel {
  DeformRoiPoolSizes sizes;
  ChannelBlocks blocks;
  const scalar_t* grad_output;  // [R][bins_h][bins_w][Ctop]
  const acc_t* rois;            // [R][5]
  const acc_t* offset;          // [R][classes][y, x][parts_h][parts_w], or null
  acc_t* grad_input;            // [N][H][W][group][Ctop]
  Add add;

  D2_HOST_DEVICE int64_t count() const { return sizes.rois * sizes.bins() * blocks.count(); }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t block = i % blocks.count(), roi_bin = i / blocks.count();
    const int64_t channel = blocks.begin(block), channels = blocks.length(block);
    const scalar_t* grad = grad_output + roi_bin * sizes.top_channels + channel;
    if (all_zero<acc_t>(grad, channels)) return;
    const DeformRoiBin<acc_t> bin(sizes, rois, offset, roi_bin / sizes.bins(),
                                  roi_bin % sizes.bins(), block / blocks.per_unit);
    const int64_t samples = bin.count_samples(sizes);
    if (samples == 0) return;
    bin.for_each_sample(sizes, [&](const AxisSample<acc_t>& y, const AxisSample<acc_t>& x) {
      const Corners<acc_t> corners(y, x, sizes.row_stride(), sizes.pixel_stride());
      scatter_to_corners(grad_input + bin.map + channel, corners, grad, acc_t(1) / acc_t(samples),
                         channels, add);
    });
  }
};

// Gradient of the offset. One call owns dy and dx of one part of one RoI for one class, i = (roi,
// class, part_y, part_x), and sums over the part's bins, their samples and the class's channels.
template <typename scalar_t, typename acc_t>
struct DeformRoiPoolOffsetGradientKernel {
  DeformRoiPoolSizes sizes;
  const scalar_t* grad_output;  // [R][bins_h][bins_w][Ctop]
  const scalar_t* input;        // [N][H][W][group][Ctop]
  const acc_t* rois;            // [R][5]
  const acc_t* offset;          // [R][classes][y, x][parts_h][parts_w]
  acc_t* grad_offset;           // as offset

  D2_HOST_DEVICE int64_t count() const {
    return sizes.rois * sizes.classes * sizes.parts_h * sizes.parts_w;
  }

  D2_HOST_DEVICE void operator()(int64_t i) const {
    const int64_t parts = sizes.parts_h * sizes.parts_w;
    const int64_t part = i % parts, roi_class = i / parts;
    const int64_t roi = roi_class / sizes.classes, class_index = roi_class % sizes.classes;
    const BinRange bins_y(part / sizes.parts_w, sizes.parts_h, sizes.bins_h);
    const BinRange bins_x(part % sizes.parts_w, sizes.parts_w, sizes.bins_w);
    acc_t grad_y = 0, grad_x = 0;
    for (int64_t bin_y = bins_y.begin; bin_y < bins_y.end; ++bin_y) {
      for (int64_t bin_x = bins_x.begin; bin_x < bins_x.end; ++bin_x) {
        add_bin(roi, class_index, bin_y * sizes.bins_w + bin_x, grad_y, grad_x);
      }
    }
    acc_t* to = grad_offset + roi_class * 2 * parts + part;
    to[0] = grad_y;
    to[parts] = grad_x;
  }

  D2_HOST_DEVICE void add_bin(int64_t roi, int64_t class_index, int64_t bin_index, acc_t& grad_y,
                              acc_t& grad_x) const {
    const int64_t channels = sizes.class_channels(), channel = class_index * channels;
    const scalar_t* grad =
        grad_output + (roi * sizes.bins() + bin_index) * sizes.top_channels + channel;
    if (all_zero<acc_t>(grad, channels)) return;
    const DeformRoiBin<acc_t> bin(sizes, rois, offset, roi, bin_index, class_index);
    acc_t sum_y = 0, sum_x = 0;
    const int64_t samples =
        bin.for_each_sample(sizes, [&](const AxisSample<acc_t>& y, const AxisSample<acc_t>& x) {
          const Corners<acc_t> corners(y, x, sizes.row_stride(), sizes.pixel_stride());
          acc_t dots[4] = {0, 0, 0, 0};
          add_corner_dots(grad, input + bin.map + channel, corners, channels, dots);
          sum_y += weighted_sum(corners.slope_y, dots);
          sum_x += weighted_sum(corners.slope_x, dots);
        });
    if (samples == 0) return;
    grad_y += sum_y * acc_t(sizes.gamma) * bin.box.height / acc_t(samples);
    grad_x += sum_x * acc_t(sizes.gamma) * bin.box.width / acc_t(samples);
  }
};

}  // namespace d2_deformable
