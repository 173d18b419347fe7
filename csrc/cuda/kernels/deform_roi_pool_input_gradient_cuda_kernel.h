// Gradient of the input of deform_roi_pool and deform_roi_align. One block owns a plane, adds to it
// in shared memory and writes it once. Only planes that do not fit are added to in place.
#pragma once

#include "../../geometry/bin_axis.h"
#include "deform_roi_pool_cuda_kernel.h"

namespace d2_deformable {

// Threads take bins as in DeformRoiPoolKernel. Bins overlap, so adds to the block's plane are
// atomic; no other block adds to it.
//
// kInOrder: sums are the same in every run. Each warp takes RoIs in a fixed order and adds to its
// own copy of the plane; the copies are summed in a fixed order too. A lane owns every 32nd column
// of its warp's copy, so there are no atomics and no waiting. A plane in place has one warp.
template <typename scalar_t, typename acc_t, RoiSampling kRule, bool kInOrder>
struct DeformRoiPoolInputGradientKernel {
  DeformRoiPoolSizes sizes;
  DeformRoiPoolDivisors by;
  RoiPlan plan;
  RoiLists<DeformRoiBins<acc_t>> lists;
  const scalar_t* grad_output;  // [R][Ctop][bins_h][bins_w]
  const acc_t* offset;          // [R][classes][y, x][parts_h][parts_w], or null: no shift
  scalar_t* grad_input;         // [N][Ctop][bin group][H][W], written for planes in shared memory
  acc_t* sums;                  // same layout, added to for planes in place; zeros at first

  D2_DEVICE void operator()() const {
    const auto add = [&](uint32_t index, acc_t* map) {
      const DeformRoiPoolPlane plane(by, index);
      const auto add_bin = [&](uint32_t bin_y, uint32_t bin_x, const auto& for_each_roi) {
        const DeformRoiPoolBin<acc_t> bin(sizes, by, plane.top_channel, bin_y, bin_x);
        for_each_roi([&](const auto& roi) {
          const acc_t grad = acc_t(grad_output[bin.element_of(sizes, roi.index)]);
          if (!(grad == acc_t(0)))
            add_samples(map, bin.template samples<kRule>(sizes, offset, roi), grad);
        });
      };
      const RoiShare share = kInOrder ? RoiShare::of_warp() : RoiShare::of_thread(plan, 0);
      share.for_each_bin(plane.bins(by), lists, plane.image, add_bin);
    };
    add_planes(plan, sizes.height * sizes.width, grad_input, sums, add);
  }

  static D2_DEVICE void add_samples(acc_t* map, const BinSamples<acc_t>& bin, acc_t grad) {
    const acc_t count = bin.count();
    if (!(count > acc_t(0))) return;  // NaN: there are no samples
    if constexpr (kInOrder) {
      add_own_columns(map, bin, grad / count);
    } else {
      add_all_columns(map, bin, grad / count);
    }
  }

  static D2_DEVICE void add_all_columns(acc_t* map, const BinSamples<acc_t>& bin, acc_t value) {
    bin.template for_each_row<false>(
        [&](const ColumnWindow<acc_t>& columns, int32_t y, acc_t weight, acc_t) {
          acc_t* row = map + int64_t(y) * bin.width;
          const acc_t row_value = weight * value;
          columns.template for_each<false>([&](int32_t x, acc_t column_weight, acc_t) {
            atomic_add(row + x, column_weight * row_value);
          });
        });
  }

  static D2_DEVICE void add_own_columns(acc_t* map, const BinSamples<acc_t>& bin, acc_t value) {
    const BinAxis<acc_t> columns(bin.x, bin.width);
    const int32_t skip = int32_t((threadIdx.x - columns.pixel_begin) % kWarp);
    for (int32_t x = columns.pixel_begin + skip; x < columns.pixel_end; x += kWarp) {
      const acc_t column_value = columns.weight(acc_t(x)) * value;
      for_each_pixel<false>(bin.y, bin.height, [&](int32_t y, acc_t weight, acc_t) {
        map[int64_t(y) * bin.width + x] += weight * column_value;
      });
    }
  }
};

}  // namespace d2_deformable
