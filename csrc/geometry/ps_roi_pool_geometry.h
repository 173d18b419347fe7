// Sizes of a position-sensitive RoI pooling, and which pixels its bins hold. For host and device;
// free of ATen.
#pragma once

#include <cstdint>

#include "roi.h"

namespace d2_deformable {

struct PsRoiPoolSizes {
  int64_t images, top_channels, height, width;
  int64_t rois, bins_h, bins_w;
  double spatial_scale;
  bool round_rois;

  D2_HOST_DEVICE int64_t bins() const { return bins_h * bins_w; }
};

// Where the bins of one RoI lie.
template <typename acc_t>
struct PsRoiBins {
  RoiBox<acc_t> box;
  acc_t bin_height, bin_width;

  D2_HOST_DEVICE PsRoiBins(const PsRoiPoolSizes& s, const acc_t* rois, int64_t roi)
      : box(rois + roi * 5, s.images, acc_t(s.spatial_scale), acc_t(0), s.round_rois),
        bin_height(box.height / acc_t(s.bins_h)),
        bin_width(box.width / acc_t(s.bins_w)) {}
};

// The map pixels of one bin of one RoI: whole pixels, from floor to ceil, clipped to the map.
template <typename acc_t>
struct PsRoiBin {
  int64_t y_begin, y_end, x_begin, x_end;

  D2_HOST_DEVICE PsRoiBin(const PsRoiPoolSizes& s, const PsRoiBins<acc_t>& bins, int64_t bin_y,
                          int64_t bin_x)
      : y_begin(floor_inside(acc_t(bin_y) * bins.bin_height + bins.box.y, s.height)),
        y_end(ceil_inside(acc_t(bin_y + 1) * bins.bin_height + bins.box.y, s.height)),
        x_begin(floor_inside(acc_t(bin_x) * bins.bin_width + bins.box.x, s.width)),
        x_end(ceil_inside(acc_t(bin_x + 1) * bins.bin_width + bins.box.x, s.width)) {}

  D2_HOST_DEVICE PsRoiBin(const PsRoiPoolSizes& s, const acc_t* rois, int64_t roi, int64_t bin)
      : PsRoiBin(s, PsRoiBins<acc_t>(s, rois, roi), bin / s.bins_w, bin % s.bins_w) {}

  D2_HOST_DEVICE int64_t area() const {
    return y_end > y_begin && x_end > x_begin ? (y_end - y_begin) * (x_end - x_begin) : 0;
  }

  // Clamps the number before it becomes an integer; NaN counts as 0.
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

}  // namespace d2_deformable
