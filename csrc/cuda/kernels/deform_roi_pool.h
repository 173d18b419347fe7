// Kernels of deform_roi_pool that read planes: blocks that own planes (roi_planes.h), threads that
// take bins. scalar_t is the type of maps, acc_t that of coordinates and sums: at least float32.
#pragma once

#include "../../geometry/deform_roi_pool.h"
#include "merged_samples.h"
#include "roi_planes.h"

namespace d2_deformable {

// Which plane of input [N][Ctop][group][H][W] a block has.
struct DeformRoiPoolPlane {
  int64_t image, top_channel, group;

  D2_DEVICE DeformRoiPoolPlane(const DeformRoiPoolSizes& s, int64_t plane)
      : image(plane / s.groups() / s.top_channels),
        top_channel(plane / s.groups() % s.top_channels),
        group(plane % s.groups()) {}

  D2_DEVICE GroupBins bins(const DeformRoiPoolSizes& s) const {
    return {BinRange(group / s.group_size, s.group_size, s.bins_h),
            BinRange(group % s.group_size, s.group_size, s.bins_w)};
  }
};

// One bin of one channel, for any RoI.
template <typename acc_t>
struct DeformRoiPoolBin {
  acc_t bin_y, bin_x;
  int64_t element;     // of output [R][Ctop][bins_h][bins_w], of RoI 0
  const acc_t* shift;  // its dy in offset [R][classes][y, x][parts_h][parts_w], of RoI 0, or null

  D2_DEVICE DeformRoiPoolBin(const DeformRoiPoolSizes& s, const acc_t* offset, int64_t top_channel,
                             int64_t bin_y, int64_t bin_x)
      : bin_y(bin_y),
        bin_x(bin_x),
        element((top_channel * s.bins_h + bin_y) * s.bins_w + bin_x),
        shift(offset) {
    if (!offset) return;
    const int64_t part_y = bin_y * s.parts_h / s.bins_h, part_x = bin_x * s.parts_w / s.bins_w;
    const int64_t class_index = top_channel / s.class_channels();
    shift += (class_index * 2 * s.parts_h + part_y) * s.parts_w + part_x;
  }

  D2_DEVICE int64_t element_of(const DeformRoiPoolSizes& s, int64_t roi) const {
    return roi * s.top_channels * s.bins() + element;
  }

  D2_DEVICE BinSamples<acc_t> samples(const DeformRoiPoolSizes& s,
                                      const ListedRoi<DeformRoiGrid<acc_t>>& roi) const {
    BinSamples<acc_t> bin{
        roi.grid.bin_start_y(bin_y), roi.grid.bin_start_x(bin_x), roi.grid.step_y, roi.grid.step_x,
        int32_t(s.samples),          int32_t(s.height),           int32_t(s.width)};
    if (shift) {
      const int64_t parts = s.parts_h * s.parts_w;
      const acc_t* own = shift + roi.index * s.classes * 2 * parts;
      bin.start_y += roi.grid.shift_y(own[0]);
      bin.start_x += roi.grid.shift_x(own[parts]);
    }
    return bin;
  }
};

// Equation (5) of the paper. A block has one channel's plane, a thread averages one bin after
// another: the different pixels of its samples, each times what they give it. Every bin of every
// channel has one thread.
template <typename scalar_t, typename acc_t>
struct DeformRoiPoolKernel {
  DeformRoiPoolSizes sizes;
  RoiPlan plan;
  RoiLists<DeformRoiGrid<acc_t>> lists;
  const scalar_t* input;  // [N][Ctop][group][H][W]
  const acc_t* offset;    // [R][classes][y, x][parts_h][parts_w], or null: no shift
  scalar_t* output;       // [R][Ctop][bins_h][bins_w]

  D2_DEVICE void operator()() const {
    const auto read = [&](int64_t plane_index, int64_t split, const scalar_t* map) {
      const DeformRoiPoolPlane plane(sizes, plane_index);
      RoiShare(plan, split)
          .for_each_bin(plane.bins(sizes), lists, plane.image,
                        [&](int64_t bin_y, int64_t bin_x, const auto& for_each_roi) {
                          const DeformRoiPoolBin<acc_t> bin(sizes, offset, plane.top_channel, bin_y,
                                                            bin_x);
                          for_each_roi([&](const auto& roi) {
                            output[bin.element_of(sizes, roi.index)] =
                                scalar_t(mean(map, bin.samples(sizes, roi)));
                          });
                        });
    };
    read_planes(plan, sizes.height * sizes.width, input, read);
  }

  static D2_DEVICE acc_t mean(const scalar_t* map, const BinSamples<acc_t>& bin) {
    acc_t sum = 0;
    bin.for_each_row([&](const ColumnWindow<acc_t>& columns, int32_t y, acc_t weight, acc_t) {
      const scalar_t* row = map + int64_t(y) * bin.width;
      acc_t row_sum = 0;
      columns.for_each(
          [&](int32_t x, acc_t column_weight, acc_t) { row_sum += column_weight * acc_t(row[x]); });
      sum += weight * row_sum;
    });
    const acc_t count = bin.count();
    return count == acc_t(0) ? acc_t(0) : sum / count;
  }
};

}  // namespace d2_deformable
