// Sizes of a deformable RoI pooling, and where its bins lie. For host and device; free of ATen.
// Ctop = C / group_size^2. deform_roi_align differs in `rule` alone; it has one bin group, one
// class, and a part for each bin.
#pragma once

#include <cstdint>

#include "bin_axis.h"
#include "roi.h"

namespace d2_deformable {

struct DeformRoiPoolSizes {
  int64_t images, top_channels, height, width;
  int64_t group_size;
  int64_t rois, bins_h, bins_w;
  int64_t classes, parts_h, parts_w;  // without an offset: 1 class
  int64_t samples;                    // per bin and axis; kAlign: 0 for as many as it has pixels
  double spatial_scale, gamma;
  bool round_rois;
  RoiSampling rule;

  D2_HOST_DEVICE int64_t bins() const { return bins_h * bins_w; }
  D2_HOST_DEVICE int64_t bin_groups() const { return group_size * group_size; }
  D2_HOST_DEVICE int64_t class_channels() const { return top_channels / classes; }
  // The most pixels that a bin reads along an axis.
  D2_HOST_DEVICE int64_t most_pixels() const {
    const int64_t side = height > width ? height : width;
    return samples > 0 && 2 * samples < side ? 2 * samples : side;
  }
};

// Where the bins of one RoI lie, and their shift: how far an offset moves them, in map pixels.
// Equation (6) of the paper: the shift is the offset of the bin's part, times gamma, times the
// RoI's size.
template <typename acc_t>
struct DeformRoiBins {
  RoiBox<acc_t> box;
  acc_t gamma, bin_height, bin_width;
  acc_t step_y, step_x;  // kPool: from sample to sample

  D2_HOST_DEVICE DeformRoiBins(const DeformRoiPoolSizes& s, const acc_t* rois, int64_t roi)
      : box(rois + roi * 5, s.images, acc_t(s.spatial_scale), acc_t(-0.5), s.round_rois,
            s.rule == RoiSampling::kPool),
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
  // The samples of a bin that begins at `start`. rule: s.rule, as a constant where speed matters.
  D2_HOST_DEVICE BinSampling<acc_t> sampling_y(const DeformRoiPoolSizes& s, RoiSampling rule,
                                               acc_t start) const {
    if (rule == RoiSampling::kAlign) {
      return align_sampling(start, bin_height, int32_t(s.samples), int32_t(s.height));
    }
    return {start, step_y, int32_t(s.samples), rule, acc_t(0)};
  }
  D2_HOST_DEVICE BinSampling<acc_t> sampling_x(const DeformRoiPoolSizes& s, RoiSampling rule,
                                               acc_t start) const {
    if (rule == RoiSampling::kAlign) {
      return align_sampling(start, bin_width, int32_t(s.samples), int32_t(s.width));
    }
    return {start, step_x, int32_t(s.samples), rule, acc_t(0)};
  }
};

}  // namespace d2_deformable
