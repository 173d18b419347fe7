// Gradient of the offset of deform_roi_pool and deform_roi_align. All bins of a part and all
// channels of a class add to the same number, where atomic adds would wait for each other. So one
// kernel, which reads the planes, stores the summand of each bin of each channel: the gradient with
// respect to the bin's shift. Another kernel sums them, in a fixed order and with one owner per
// number.
#pragma once

#include "deform_roi_pool_cuda_kernel.h"

namespace d2_deformable {

// The derivatives of each bin with respect to its shift in map pixels, times the gradient of the
// output. Blocks, threads and the pixels they read are as in DeformRoiPoolKernel. One thread
// writes each element of grad_shift.
template <typename scalar_t, typename acc_t, RoiSampling kRule>
struct DeformRoiPoolShiftGradientKernel {
  static constexpr int kMaxThreads = sizeof(acc_t) == 8 ? 256 : 512;  // as in roi_plan.h

  DeformRoiPoolSizes sizes;
  DeformRoiPoolDivisors by;
  RoiPlan plan;
  RoiLists<DeformRoiBins<acc_t>> lists;
  const scalar_t* grad_output;  // [R][Ctop][bins_h][bins_w]
  const scalar_t* input;        // [N][Ctop][bin group][H][W]
  const acc_t* offset;          // [R][classes][y, x][parts_h][parts_w]
  acc_t* grad_shift;            // [y, x][R][Ctop][bins_h][bins_w]

  D2_DEVICE void operator()() const {
    const int64_t numel = sizes.rois * sizes.top_channels * sizes.bins();
    const auto read = [&](uint32_t index, uint32_t split, const scalar_t* map) {
      const DeformRoiPoolPlane plane(by, index);
      const auto read_bin = [&](uint32_t bin_y, uint32_t bin_x, const auto& for_each_roi) {
        const DeformRoiPoolBin<acc_t> bin(sizes, by, plane.top_channel, bin_y, bin_x);
        for_each_roi([&](const auto& roi) {
          const int64_t element = bin.element_of(sizes, roi.index);
          const acc_t grad = acc_t(grad_output[element]);
          acc_t grad_y = 0, grad_x = 0;
          if (!(grad == acc_t(0))) {
            differentiate(map, bin.template samples<kRule>(sizes, offset, roi), grad, grad_y,
                          grad_x);
          }
          grad_shift[element] = grad_y;
          grad_shift[element + numel] = grad_x;
        });
      };
      RoiShare::of_thread(plan, split).for_each_bin(plane.bins(by), lists, plane.image, read_bin);
    };
    read_planes(plan, sizes.height * sizes.width, input, read);
  }

  static D2_DEVICE void differentiate(const scalar_t* map, const BinSamples<acc_t>& bin, acc_t grad,
                                      acc_t& grad_y, acc_t& grad_x) {
    const acc_t count = bin.count();
    if (!(count > acc_t(0))) return;  // NaN: there are no samples
    bin.template for_each_row<true>(
        [&](const ColumnWindow<acc_t>& columns, int32_t y, acc_t weight, acc_t slope) {
          const scalar_t* row = map + int64_t(y) * bin.width;
          acc_t row_value = 0, row_slope = 0;
          columns.template for_each<true>([&](int32_t x, acc_t column_weight, acc_t column_slope) {
            const acc_t pixel = acc_t(row[x]);
            row_value += column_weight * pixel;
            row_slope += column_slope * pixel;
          });
          grad_y += slope * row_value;
          grad_x += weight * row_slope;
        });
    // A bin outside the map ignores a gradient of NaN: no 0 * NaN.
    if (grad_y != acc_t(0)) grad_y *= grad / count;
    if (grad_x != acc_t(0)) grad_x *= grad / count;
  }
};

// Sums grad_shift to the gradient of the offset. `lanes` neighbouring lanes own dy and dx of one
// part of one RoI for one class. They share the channels of the class, and each lane takes all bins
// of the part.
template <typename scalar_t, typename acc_t>
struct DeformRoiPoolOffsetGradientKernel {
  DeformRoiPoolSizes sizes;
  int lanes;                // a power of two up to 32
  const acc_t* grad_shift;  // [y, x][R][Ctop][bins_h][bins_w]
  const acc_t* rois;        // [R][5]
  acc_t* grad_offset;       // [R][classes][y, x][parts_h][parts_w]

  D2_HOST_DEVICE int64_t owners() const {
    return sizes.rois * sizes.classes * sizes.parts_h * sizes.parts_w;
  }

  D2_DEVICE void operator()() const {
    const int64_t parts = sizes.parts_h * sizes.parts_w, block_owners = blockDim.x / lanes;
    for (int64_t first = blockIdx.x * block_owners; first < owners();
         first += gridDim.x * block_owners) {
      const int64_t owner = first + threadIdx.x / lanes;
      const int64_t roi_class = owner / parts, part = owner % parts;
      acc_t grad_y = 0, grad_x = 0;
      if (owner < owners()) add_bins(roi_class, part, threadIdx.x % lanes, grad_y, grad_x);
      grad_y = warp_sum(grad_y, lanes), grad_x = warp_sum(grad_x, lanes);
      if (owner >= owners() || threadIdx.x % lanes != 0) continue;
      const DeformRoiBins<acc_t> bins(sizes, rois, roi_class / sizes.classes);
      acc_t* to = grad_offset + roi_class * 2 * parts + part;
      // A RoI of infinite size has no sample that counts: no 0 * infinity.
      to[0] = grad_y == acc_t(0) ? acc_t(0) : bins.shift_y(grad_y);
      to[parts] = grad_x == acc_t(0) ? acc_t(0) : bins.shift_x(grad_x);
    }
  }

  D2_DEVICE void add_bins(int64_t roi_class, int64_t part, int lane, acc_t& grad_y,
                          acc_t& grad_x) const {
    const BinRange bins_y(part / sizes.parts_w, sizes.parts_h, sizes.bins_h);
    const BinRange bins_x(part % sizes.parts_w, sizes.parts_w, sizes.bins_w);
    const acc_t* y = grad_shift + roi_class * sizes.class_channels() * sizes.bins();
    const acc_t* x = y + sizes.rois * sizes.top_channels * sizes.bins();
    for (int64_t channel = lane; channel < sizes.class_channels(); channel += lanes) {
      for (int64_t bin_y = bins_y.begin; bin_y < bins_y.end; ++bin_y) {
        for (int64_t bin_x = bins_x.begin; bin_x < bins_x.end; ++bin_x) {
          const int64_t bin = channel * sizes.bins() + bin_y * sizes.bins_w + bin_x;
          grad_y += y[bin], grad_x += x[bin];
        }
      }
    }
  }
};

}  // namespace d2_deformable
