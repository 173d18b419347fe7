// Forward kernel of deform_roi_pool and deform_roi_align, and what its gradients share with it.
// Blocks own planes (roi_planes.h), threads take bins. scalar_t is the type of maps, acc_t that of
// coordinates and sums: at least float32.
#pragma once

#include "../../geometry/deform_roi_pool_geometry.h"
#include "merged_samples.h"
#include "roi_planes.h"

namespace d2_deformable {

// What the kernels divide by, for fast division.
struct DeformRoiPoolDivisors {
  Divisor bin_groups, group_size, top_channels, class_channels, bins_h, bins_w;

  DeformRoiPoolDivisors() = default;
  explicit DeformRoiPoolDivisors(const DeformRoiPoolSizes& s)
      : bin_groups(s.bin_groups()),
        group_size(s.group_size),
        top_channels(s.top_channels),
        class_channels(s.class_channels()),
        bins_h(s.bins_h),
        bins_w(s.bins_w) {}
};

// Image, channel and bin group of a plane of input [N][Ctop][bin group][H][W].
struct DeformRoiPoolPlane {
  uint32_t image, top_channel, bin_group_y, bin_group_x;

  D2_DEVICE DeformRoiPoolPlane(const DeformRoiPoolDivisors& by, uint32_t plane) {
    const auto [image_and_channel, bin_group] = by.bin_groups.divide(plane);
    const auto [image_of_plane, channel] = by.top_channels.divide(image_and_channel);
    const auto [y, x] = by.group_size.divide(bin_group);
    image = image_of_plane, top_channel = channel, bin_group_y = y, bin_group_x = x;
  }

  D2_DEVICE BinGroup bins(const DeformRoiPoolDivisors& by) const {
    return {first_bin(by, bin_group_y, by.bins_h), first_bin(by, bin_group_y + 1, by.bins_h),
            first_bin(by, bin_group_x, by.bins_w), first_bin(by, bin_group_x + 1, by.bins_w)};
  }

 private:
  // Bin b is in bin group b * group_size / bins.
  static D2_DEVICE uint32_t first_bin(const DeformRoiPoolDivisors& by, uint32_t bin_group,
                                      const Divisor& bins) {
    return by.group_size.quotient(bin_group * bins.divisor() + by.group_size.divisor() - 1);
  }
};

// One bin of one channel, for any RoI.
template <typename acc_t>
struct DeformRoiPoolBin {
  acc_t bin_y, bin_x;
  uint32_t element;       // in output [R][Ctop][bins_h][bins_w], for RoI 0
  uint32_t offset_index;  // of y in offset [R][classes][y, x][parts_h][parts_w], for RoI 0

  D2_DEVICE DeformRoiPoolBin(const DeformRoiPoolSizes& s, const DeformRoiPoolDivisors& by,
                             uint32_t top_channel, uint32_t y, uint32_t x)
      : bin_y(y),
        bin_x(x),
        element((top_channel * by.bins_h.divisor() + y) * by.bins_w.divisor() + x) {
    const uint32_t part_y = by.bins_h.quotient(y * uint32_t(s.parts_h));
    const uint32_t part_x = by.bins_w.quotient(x * uint32_t(s.parts_w));
    const uint32_t class_index = by.class_channels.quotient(top_channel);
    offset_index = (class_index * 2 * uint32_t(s.parts_h) + part_y) * uint32_t(s.parts_w) + part_x;
  }

  D2_DEVICE int64_t element_of(const DeformRoiPoolSizes& s, int64_t roi) const {
    return roi * s.top_channels * s.bins() + element;
  }

  // offset: null if bins are not shifted
  template <RoiSampling kRule>
  D2_DEVICE BinSamples<acc_t> samples(const DeformRoiPoolSizes& s, const acc_t* offset,
                                      const ListedRoi<DeformRoiBins<acc_t>>& roi) const {
    acc_t y = roi.bins.bin_start_y(bin_y), x = roi.bins.bin_start_x(bin_x);
    if (offset) {
      const int64_t parts = s.parts_h * s.parts_w;
      const acc_t* own = offset + roi.index * s.classes * 2 * parts + offset_index;
      y += roi.bins.shift_y(own[0]);
      x += roi.bins.shift_x(own[parts]);
    }
    return {roi.bins.sampling_y(s, kRule, y), roi.bins.sampling_x(s, kRule, x), int32_t(s.height),
            int32_t(s.width)};
  }
};

// Equation (5) of the paper. A block has one plane. A thread averages one bin after another: it
// reads each different pixel of the bin's samples once, times its merged weight. Every bin of every
// channel belongs to one thread.
//
// kRule is a template argument because the other rule's code would take registers.
template <typename scalar_t, typename acc_t, RoiSampling kRule>
struct DeformRoiPoolKernel {
  DeformRoiPoolSizes sizes;
  DeformRoiPoolDivisors by;
  RoiPlan plan;
  RoiLists<DeformRoiBins<acc_t>> lists;
  const scalar_t* input;  // [N][Ctop][bin group][H][W]
  const acc_t* offset;    // [R][classes][y, x][parts_h][parts_w], or null: no shift
  scalar_t* output;       // [R][Ctop][bins_h][bins_w]

  D2_DEVICE void operator()() const {
    const auto read = [&](uint32_t index, uint32_t split, const scalar_t* map) {
      const DeformRoiPoolPlane plane(by, index);
      const auto read_bin = [&](uint32_t bin_y, uint32_t bin_x, const auto& for_each_roi) {
        const DeformRoiPoolBin<acc_t> bin(sizes, by, plane.top_channel, bin_y, bin_x);
        for_each_roi([&](const auto& roi) {
          output[bin.element_of(sizes, roi.index)] =
              scalar_t(mean(map, bin.template samples<kRule>(sizes, offset, roi)));
        });
      };
      RoiShare::of_thread(plan, split).for_each_bin(plane.bins(by), lists, plane.image, read_bin);
    };
    read_planes(plan, sizes.height * sizes.width, input, read);
  }

  static D2_DEVICE acc_t mean(const scalar_t* map, const BinSamples<acc_t>& bin) {
    acc_t sum = 0;
    bin.template for_each_row<false>(
        [&](const ColumnWindow<acc_t>& columns, int32_t y, acc_t weight, acc_t) {
          const scalar_t* row = map + int64_t(y) * bin.width;
          acc_t row_sum = 0;
          columns.template for_each<false>([&](int32_t x, acc_t column_weight, acc_t) {
            row_sum += column_weight * acc_t(row[x]);
          });
          sum += weight * row_sum;
        });
    const acc_t count = bin.count();
    return count == acc_t(0) ? acc_t(0) : sum / count;
  }
};

}  // namespace d2_deformable
