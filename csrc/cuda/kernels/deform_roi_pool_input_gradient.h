// Gradient of the input of deform_roi_pool: every plane has a block that owns it, adds to it in
// shared memory and writes it once. Only a plane that does not fit is added to in place.
#pragma once

#include "../../geometry/bin_axis.h"
#include "deform_roi_pool.h"

namespace d2_deformable {

// Threads take bins as in DeformRoiPoolKernel. Bins overlap, so their adds to the block's plane are
// atomic; no other block adds there.
//
// kInOrder: for sums that are the same each time, warps take bins, in one order, each for a copy of
// the plane of its own; the copies are added up in one order too. A lane owns every 32nd column of
// its warp's copy, so nothing is atomic and nobody waits. A plane in place has one warp.
template <typename scalar_t, typename acc_t, bool kInOrder>
struct DeformRoiPoolInputGradientKernel {
  DeformRoiPoolSizes sizes;
  RoiPlan plan;
  RoiLists lists;
  const scalar_t* grad_output;  // [R][Ctop][bins_h][bins_w]
  const acc_t* rois;            // [R][5]
  const acc_t* offset;          // [R][classes][y, x][parts_h][parts_w], or null: no shift
  scalar_t* grad_input;         // [N][Ctop][group][H][W], of planes in shared memory
  acc_t* sums;                  // the same of planes in place, zeros at first

  D2_DEVICE void operator()() const {
    add_planes(plan, sizes.height * sizes.width, grad_input, sums, [&](int64_t plane, acc_t* map) {
      const DeformRoiPoolPlane at(sizes, plane);
      const auto add = [&](int64_t roi, int64_t bin) { add_bin(map, at, roi, bin); };
      if constexpr (kInOrder) {
        for_each_bin_in_order(lists, at.image, at.bins(sizes), add);
      } else {
        for_each_bin(plan, 0, lists, at.image, at.bins(sizes), add);
      }
    });
  }

  D2_DEVICE void add_bin(acc_t* map, const DeformRoiPoolPlane& at, int64_t roi,
                         int64_t bin_index) const {
    const acc_t grad =
        acc_t(grad_output[(roi * sizes.top_channels + at.top_channel) * sizes.bins() + bin_index]);
    if (grad == acc_t(0)) return;
    const DeformRoiBin<acc_t> bin(sizes, rois, offset, roi, bin_index, at.class_index);
    const int32_t samples = count_samples(bin.start_y, bin.step_y, sizes.samples, sizes.height) *
                            count_samples(bin.start_x, bin.step_x, sizes.samples, sizes.width);
    if (samples == 0) return;
    if constexpr (kInOrder) {
      add_own_columns(map, bin, grad / acc_t(samples));
    } else {
      add_all_columns(map, bin, grad / acc_t(samples));
    }
  }

  D2_DEVICE void add_all_columns(acc_t* map, const DeformRoiBin<acc_t>& bin, acc_t grad) const {
    for_each_row<acc_t>(bin, sizes.samples, sizes.height, sizes.width,
                        [&](const ColumnWindow<acc_t>& columns, int32_t y, acc_t weight, acc_t) {
                          acc_t* row = map + y * sizes.width;
                          columns.for_each([&](int32_t x, acc_t column_weight, acc_t) {
                            atomic_add(row + x, weight * column_weight * grad);
                          });
                        });
  }

  D2_DEVICE void add_own_columns(acc_t* map, const DeformRoiBin<acc_t>& bin, acc_t grad) const {
    const BinAxis<acc_t> columns(bin.start_x, bin.step_x, sizes.samples, sizes.width);
    const int32_t skip = (threadIdx.x - columns.pixel_begin) % unsigned(kWarp);
    for (int32_t x = columns.pixel_begin + skip; x < columns.pixel_end; x += kWarp) {
      const acc_t value = columns.weight(acc_t(x)) * grad;
      if (value == acc_t(0)) continue;
      for_each_pixel(
          bin.start_y, bin.step_y, sizes.samples, sizes.height,
          [&](int32_t y, acc_t weight, acc_t) { map[y * sizes.width + x] += weight * value; });
    }
  }
};

}  // namespace d2_deformable
