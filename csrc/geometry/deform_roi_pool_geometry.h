// Sizes of a deformable RoI pooling, and where its bins lie. For host and device; free of ATen.
// Ctop = C / group_size^2.
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
  D2_HOST_DEVICE int64_t bin_groups() const { return group_size * group_size; }
  D2_HOST_DEVICE int64_t class_channels() const { return top_channels / classes; }
};

// Where the bins of one RoI lie, and their shift: how far an offset moves them, in map pixels.
// Equation (6) of the paper: the shift is the offset of the bin's part, times gamma, times the
// RoI's size.
template <typename acc_t>
struct DeformRoiBins {
  RoiBox<acc_t> box;
  acc_t gamma, bin_height, bin_width;
  acc_t step_y, step_x;  // from sample to sample

  D2_HOST_DEVICE DeformRoiBins(const DeformRoiPoolSizes& s, const acc_t* rois, int64_t roi)
      : box(rois + roi * 5, s.images, acc_t(s.spatial_scale), acc_t(-0.5), s.round_rois),
        gamma(s.gamma),
        bin_height(box.height / acc_t(s.bins_h)),
        bin_width(box.width / acc_t(s.bins_w)),
        step_y(bin_height / acc_t(s.samples)),
        step_x(bin_width / acc_t(s.samples)) {}

  D2_HOST_DEVICE acc_t bin_start_y(int64_t bin_y) const {
    return acc_t(bin_y) * bin_height + box.y;
  }
  D2_HOST_DEVICE acc_t bin_start_x(int64_t bin_x) const { return acc_t(bin_x) * bin_width + box.x; }
  D2_HOST_DEVICE acc_t shift_y(acc_t offset) const { return offset * gamma * box.height; }
  D2_HOST_DEVICE acc_t shift_x(acc_t offset) const { return offset * gamma * box.width; }
};

}  // namespace d2_deformable
