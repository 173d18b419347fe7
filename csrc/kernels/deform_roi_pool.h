// Kernel bodies of deform_roi_pool: one functor per kernel, for host and device, free of ATen.
//
// Maps are group-major channels-last, [N][H][W][group][Ctop]: a position-sensitive bin reads the
// channels of its own group only, and these are neighbours in memory. Ctop = C / group_size^2.
// scalar_t is the type of maps, acc_t that of coordinates and sums: at least float32.
#pragma once

#include "channels.h"
#include "roi.h"

namespace d2_deformable {

struct DeformRoiPoolSizes {
  int64_t images, top_channels, height, width;
  int64_t group_size;
  int64_t rois, bins_h, bins_w;
  int64_t classes, parts_h, parts_w;  // without an offset: 1 class
  int64_t samples;                    // per bin and axis
  double spatial_scale, gamma;
  bool round_rois;

  D2_HOST_DEVICE int64_t bins() const { return bins_h * bins_w; }
  D2_HOST_DEVICE int64_t groups() const { return group_size * group_size; }
  D2_HOST_DEVICE int64_t class_channels() const { return top_channels / classes; }
  D2_HOST_DEVICE int64_t pixel_stride() const { return groups() * top_channels; }
  D2_HOST_DEVICE int64_t row_stride() const { return width * pixel_stride(); }
};

// One bin of one RoI for one class: its grid of sampling points, shifted as in equation (6) of the
// paper by the offset of the bin's part, times gamma, times the RoI's size.
template <typename acc_t>
struct DeformRoiBin {
  RoiBox<acc_t> box;
  acc_t start_y, start_x, step_y, step_x;
  int64_t map;  // of the image's first pixel, at the bin's group

  D2_HOST_DEVICE DeformRoiBin(const DeformRoiPoolSizes& s, const acc_t* rois, const acc_t* offset,
                              int64_t roi, int64_t bin, int64_t class_index)
      : box(rois + roi * 5, s.images, acc_t(s.spatial_scale), acc_t(-0.5), s.round_rois) {
    const int64_t bin_y = bin / s.bins_w, bin_x = bin % s.bins_w;
    const acc_t bin_height = box.height / acc_t(s.bins_h), bin_width = box.width / acc_t(s.bins_w);
    start_y = acc_t(bin_y) * bin_height + box.y;
    start_x = acc_t(bin_x) * bin_width + box.x;
    step_y = bin_height / acc_t(s.samples);
    step_x = bin_width / acc_t(s.samples);
    if (offset) {
      const int64_t parts = s.parts_h * s.parts_w;
      const int64_t part = bin_y * s.parts_h / s.bins_h * s.parts_w + bin_x * s.parts_w / s.bins_w;
      const acc_t* shift = offset + (roi * s.classes + class_index) * 2 * parts + part;
      start_y += shift[0] * acc_t(s.gamma) * box.height;
      start_x += shift[parts] * acc_t(s.gamma) * box.width;
    }
    const int64_t group =
        bin_y * s.group_size / s.bins_h * s.group_size + bin_x * s.group_size / s.bins_w;
    map = box.image * s.height * s.row_stride() + group * s.top_channels;
  }

  // Calls visit(corners) for each sampling point that counts, and returns how many do. Points stand
  // at the top left of their cell of the samples x samples grid, as in the released operator;
  // points beyond the map do not count.
  template <typename Visit>
  D2_HOST_DEVICE int64_t for_each_sample(const DeformRoiPoolSizes& s, const Visit& visit) const {
    int64_t count = 0;
    for (int64_t sample_y = 0; sample_y < s.samples; ++sample_y) {
      AxisSample<acc_t> y;
      if (!sample_axis_clamped(start_y + acc_t(sample_y) * step_y, s.height, y)) continue;
      for (int64_t sample_x = 0; sample_x < s.samples; ++sample_x) {
        AxisSample<acc_t> x;
        if (!sample_axis_clamped(start_x + acc_t(sample_x) * step_x, s.width, x)) continue;
        visit(Corners<acc_t>(y, x, s.row_stride(), s.pixel_stride()));
        ++count;
      }
    }
    return count;
  }

  D2_HOST_DEVICE int64_t count_samples(const DeformRoiPoolSizes& s) const {
    int64_t rows = 0, columns = 0;
    AxisSample<acc_t> axis;
    for (int64_t k = 0; k < s.samples; ++k) {
      rows += sample_axis_clamped(start_y + acc_t(k) * step_y, s.height, axis) ? 1 : 0;
      columns += sample_axis_clamped(start_x + acc_t(k) * step_x, s.width, axis) ? 1 : 0;
    }
    return rows * columns;
  }
};

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
    const int64_t samples = bin.for_each_sample(sizes, [&](const Corners<acc_t>& corners) {
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
    bin.for_each_sample(sizes, [&](const Corners<acc_t>& corners) {
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
    const int64_t samples = bin.for_each_sample(sizes, [&](const Corners<acc_t>& corners) {
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
