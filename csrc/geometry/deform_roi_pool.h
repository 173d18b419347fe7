// Sizes of a deformable RoI pooling, and where its bins read: for host and device, free of ATen.
//
// Maps are group-major channels-last, [N][H][W][group][Ctop]: a position-sensitive bin reads the
// channels of its own group only, and these are neighbours in memory. Ctop = C / group_size^2.
#pragma once

#include <cstdint>

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

// The bins of one RoI in place, and what an offset of 1 moves them by: equation (6) of the paper
// shifts a bin by the offset of its part, times gamma, times the RoI's size.
template <typename acc_t>
struct DeformRoiGrid {
  RoiBox<acc_t> box;
  acc_t gamma, bin_height, bin_width;
  acc_t step_y, step_x;  // from sample to sample

  D2_HOST_DEVICE DeformRoiGrid(const DeformRoiPoolSizes& s, const acc_t* rois, int64_t roi)
      : box(rois + roi * 5, s.images, acc_t(s.spatial_scale), acc_t(-0.5), s.round_rois),
        gamma(s.gamma),
        bin_height(box.height / acc_t(s.bins_h)),
        bin_width(box.width / acc_t(s.bins_w)),
        step_y(bin_height / acc_t(s.samples)),
        step_x(bin_width / acc_t(s.samples)) {}

  D2_HOST_DEVICE acc_t bin_start_y(int64_t bin_y) const {
    return acc_t(bin_y) * bin_height + box.y;
  }
  D2_HOST_DEVICE acc_t bin_start_x(int64_t bin_x) const {
    return acc_t(bin_x) * bin_width + box.x;
  }
  D2_HOST_DEVICE acc_t shift_y(acc_t offset) const { return offset * gamma * box.height; }
  D2_HOST_DEVICE acc_t shift_x(acc_t offset) const { return offset * gamma * box.width; }
};

// One bin of one RoI for one class: its grid of sampling points.
template <typename acc_t>
struct DeformRoiBin : DeformRoiGrid<acc_t> {
  acc_t start_y, start_x;
  int64_t map;  // of the image's first pixel, at the bin's group

  D2_HOST_DEVICE DeformRoiBin(const DeformRoiPoolSizes& s, const acc_t* rois, const acc_t* offset,
                              int64_t roi, int64_t bin, int64_t class_index)
      : DeformRoiGrid<acc_t>(s, rois, roi) {
    const int64_t bin_y = bin / s.bins_w, bin_x = bin % s.bins_w;
    start_y = this->bin_start_y(bin_y);
    start_x = this->bin_start_x(bin_x);
    if (offset) {
      const int64_t parts = s.parts_h * s.parts_w;
      const int64_t part = bin_y * s.parts_h / s.bins_h * s.parts_w + bin_x * s.parts_w / s.bins_w;
      const acc_t* shift = offset + (roi * s.classes + class_index) * 2 * parts + part;
      start_y += this->shift_y(shift[0]);
      start_x += this->shift_x(shift[parts]);
    }
    const int64_t group =
        bin_y * s.group_size / s.bins_h * s.group_size + bin_x * s.group_size / s.bins_w;
    map = this->box.image * s.height * s.row_stride() + group * s.top_channels;
  }

  // Calls visit(y, x) for each sampling point that counts, and returns how many do. Points stand
  // at the top left of their cell of the samples x samples grid, as in the released operator;
  // points beyond the map do not count.
  template <typename Visit>
  D2_HOST_DEVICE int64_t for_each_sample(const DeformRoiPoolSizes& s, const Visit& visit) const {
    int64_t count = 0;
    for (int64_t sample_y = 0; sample_y < s.samples; ++sample_y) {
      AxisSample<acc_t> y;
      if (!sample_axis_clamped(start_y + acc_t(sample_y) * this->step_y, s.height, y)) continue;
      for (int64_t sample_x = 0; sample_x < s.samples; ++sample_x) {
        AxisSample<acc_t> x;
        if (!sample_axis_clamped(start_x + acc_t(sample_x) * this->step_x, s.width, x)) continue;
        visit(y, x);
        ++count;
      }
    }
    return count;
  }

  D2_HOST_DEVICE int64_t count_samples(const DeformRoiPoolSizes& s) const {
    int64_t rows = 0, columns = 0;
    AxisSample<acc_t> axis;
    for (int64_t k = 0; k < s.samples; ++k) {
      rows += sample_axis_clamped(start_y + acc_t(k) * this->step_y, s.height, axis) ? 1 : 0;
      columns += sample_axis_clamped(start_x + acc_t(k) * this->step_x, s.width, axis) ? 1 : 0;
    }
    return rows * columns;
  }
};

}  // namespace d2_deformable
