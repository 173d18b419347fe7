// Kernels of ps_roi_pool: blocks that own planes (roi_planes.h), each of which one bin of every RoI
// reads. scalar_t is the type of maps, acc_t that of coordinates and sums: at least float32.
#pragma once

#include "../../geometry/ps_roi_pool.h"
#include "roi_planes.h"

namespace d2_deformable {

// Which plane of input [N][Ctop][bin][H][W] a block has.
struct PsRoiPoolPlane {
  int64_t image, top_channel, bin;

  D2_DEVICE PsRoiPoolPlane(const PsRoiPoolSizes& s, int64_t plane)
      : image(plane / s.bins() / s.top_channels),
        top_channel(plane / s.bins() % s.top_channels),
        bin(plane % s.bins()) {}

  D2_DEVICE GroupBins bins(const PsRoiPoolSizes& s) const {
    return {BinRange(bin / s.bins_w, s.bins_h, s.bins_h),
            BinRange(bin % s.bins_w, s.bins_w, s.bins_w), s.bins_w};
  }
};

// Position-sensitive average pooling. A block has one channel's plane, a thread averages the
// channel's bin of one RoI after another. Every bin of every channel has one thread.
template <typename scalar_t, typename acc_t>
struct PsRoiPoolKernel {
  PsRoiPoolSizes sizes;
  RoiPlan plan;
  RoiLists lists;
  const scalar_t* input;  // [N][Ctop][bin][H][W]
  const acc_t* rois;      // [R][5]
  scalar_t* output;       // [R][Ctop][bins_h][bins_w]

  D2_DEVICE void operator()() const {
    read_planes(plan, sizes.height * sizes.width, input,
                [&](int64_t plane, int64_t split, const scalar_t* map) {
                  const PsRoiPoolPlane at(sizes, plane);
                  for_each_bin(
                      plan, split, lists, at.image, at.bins(sizes), [&](int64_t roi, int64_t bin) {
                        output[(roi * sizes.top_channels + at.top_channel) * sizes.bins() + bin] =
                            scalar_t(mean(map, roi, bin));
                      });
                });
  }

  D2_DEVICE acc_t mean(const scalar_t* map, int64_t roi, int64_t bin_index) const {
    const PsRoiBin<acc_t> bin(sizes, rois, roi, bin_index);
    acc_t sum = 0;
    for (int64_t y = bin.y_begin; y < bin.y_end; ++y) {
      const scalar_t* row = map + y * sizes.width;
      for (int64_t x = bin.x_begin; x < bin.x_end; ++x) sum += acc_t(row[x]);
    }
    return bin.area() == 0 ? acc_t(0) : sum / acc_t(bin.area());
  }
};

// Gradient of the input: a block owns a plane, adds to it in shared memory and writes it once. A
// thread spreads the gradient of the bin of one RoI after another. RoIs overlap, so adds are
// atomic; no other block adds there. Only a plane that does not fit is added to in place.
//
// kInOrder: as DeformRoiPoolInputGradientKernel, nothing is atomic and sums are the same each time.
template <typename scalar_t, typename acc_t, bool kInOrder>
struct PsRoiPoolInputGradientKernel {
  PsRoiPoolSizes sizes;
  RoiPlan plan;
  RoiLists lists;
  const scalar_t* grad_output;  // [R][Ctop][bins_h][bins_w]
  const acc_t* rois;            // [R][5]
  scalar_t* grad_input;         // [N][Ctop][bin][H][W], of planes in shared memory
  acc_t* sums;                  // the same of planes in place, zeros at first

  D2_DEVICE void operator()() const {
    add_planes(plan, sizes.height * sizes.width, grad_input, sums, [&](int64_t plane, acc_t* map) {
      const PsRoiPoolPlane at(sizes, plane);
      const auto add = [&](int64_t roi, int64_t bin) { add_bin(map, at.top_channel, roi, bin); };
      if constexpr (kInOrder) {
        for_each_bin_in_order(lists, at.image, at.bins(sizes), add);
      } else {
        for_each_bin(plan, 0, lists, at.image, at.bins(sizes), add);
      }
    });
  }

  D2_DEVICE void add_bin(acc_t* map, int64_t top_channel, int64_t roi, int64_t bin_index) const {
    const acc_t grad =
        acc_t(grad_output[(roi * sizes.top_channels + top_channel) * sizes.bins() + bin_index]);
    if (grad == acc_t(0)) return;
    const PsRoiBin<acc_t> bin(sizes, rois, roi, bin_index);
    if (bin.area() == 0) return;
    const acc_t value = grad / acc_t(bin.area());
    const int64_t skip = kInOrder ? (threadIdx.x - unsigned(bin.x_begin)) % kWarp : 0;
    for (int64_t y = bin.y_begin; y < bin.y_end; ++y) {
      acc_t* row = map + y * sizes.width;
      for (int64_t x = bin.x_begin + skip; x < bin.x_end; x += kInOrder ? kWarp : 1) {
        if constexpr (kInOrder) {
          row[x] += value;
        } else {
          atomic_add(row + x, value);
        }
      }
    }
  }
};

}  // namespace d2_deformable
