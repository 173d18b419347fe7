// CUDA kernels of ps_roi_pool. Blocks own planes (roi_planes.h); one bin of every RoI reads a
// plane. scalar_t is the type of maps, acc_t that of coordinates and sums: at least float32.
#pragma once

#include "../../geometry/ps_roi_pool_geometry.h"
#include "roi_planes.h"

namespace d2_deformable {

// What the kernels divide by, for fast division.
struct PsRoiPoolDivisors {
  Divisor top_channels, bins, bins_w;

  PsRoiPoolDivisors() = default;
  explicit PsRoiPoolDivisors(const PsRoiPoolSizes& s)
      : top_channels(s.top_channels), bins(s.bins()), bins_w(s.bins_w) {}
};

// Image, channel and bin of a plane of input [N][Ctop][bin][H][W].
struct PsRoiPoolPlane {
  uint32_t image, top_channel, bin_y, bin_x;

  D2_DEVICE PsRoiPoolPlane(const PsRoiPoolDivisors& by, uint32_t plane) {
    const auto [image_and_channel, bin] = by.bins.divide(plane);
    const auto [image_of_plane, channel] = by.top_channels.divide(image_and_channel);
    const auto [y, x] = by.bins_w.divide(bin);
    image = image_of_plane, top_channel = channel, bin_y = y, bin_x = x;
  }

  D2_DEVICE BinGroup bins() const { return {bin_y, bin_y + 1, bin_x, bin_x + 1}; }

  // Index of its bin in [R][Ctop][bins_h][bins_w].
  D2_DEVICE int64_t element_of(const PsRoiPoolSizes& s, int64_t roi) const {
    return (roi * s.top_channels + top_channel) * s.bins() + bin_y * s.bins_w + bin_x;
  }
};

// Position-sensitive average pooling. A block has one plane. A thread averages the plane's bin of
// one RoI after another. Every bin of every channel belongs to one thread.
template <typename scalar_t, typename acc_t>
struct PsRoiPoolKernel {
  PsRoiPoolSizes sizes;
  PsRoiPoolDivisors by;
  RoiPlan plan;
  RoiLists<PsRoiBins<acc_t>> lists;
  const scalar_t* input;  // [N][Ctop][bin][H][W]
  scalar_t* output;       // [R][Ctop][bins_h][bins_w]

  D2_DEVICE void operator()() const {
    const auto read = [&](uint32_t index, uint32_t split, const scalar_t* map) {
      const PsRoiPoolPlane plane(by, index);
      const auto read_bin = [&](uint32_t bin_y, uint32_t bin_x, const auto& for_each_roi) {
        for_each_roi([&](const auto& roi) {
          const PsRoiBin<acc_t> bin(sizes, roi.bins, bin_y, bin_x);
          output[plane.element_of(sizes, roi.index)] = scalar_t(mean(map, bin));
        });
      };
      RoiShare::of_thread(plan, split).for_each_bin(plane.bins(), lists, plane.image, read_bin);
    };
    read_planes(plan, sizes.height * sizes.width, input, read);
  }

  D2_DEVICE acc_t mean(const scalar_t* map, const PsRoiBin<acc_t>& bin) const {
    acc_t sum = 0;
    for (int64_t y = bin.y_begin; y < bin.y_end; ++y) {
      const scalar_t* row = map + y * sizes.width;
      for (int32_t x = int32_t(bin.x_begin); x < bin.x_end; ++x) sum += acc_t(row[x]);
    }
    return bin.area() == 0 ? acc_t(0) : sum / acc_t(bin.area());
  }
};

// Gradient of the input. One block owns a plane, adds to it in shared memory and writes it once. A
// thread spreads the gradient of the bin of one RoI after another. RoIs overlap, so adds are
// atomic; no other block adds to the plane. Only planes that do not fit are added to in place.
//
// kInOrder: sums are the same in every run. Each warp takes RoIs in a fixed order and adds to its
// own copy of the plane; the copies are summed in a fixed order too. A lane owns every 32nd column
// of its warp's copy, so there are no atomics and no waiting. A plane in place has one warp.
template <typename scalar_t, typename acc_t, bool kInOrder>
struct PsRoiPoolInputGradientKernel {
  PsRoiPoolSizes sizes;
  PsRoiPoolDivisors by;
  RoiPlan plan;
  RoiLists<PsRoiBins<acc_t>> lists;
  const scalar_t* grad_output;  // [R][Ctop][bins_h][bins_w]
  scalar_t* grad_input;         // [N][Ctop][bin][H][W], written for planes in shared memory
  acc_t* sums;                  // same layout, added to for planes in place; zeros at first

  D2_DEVICE void operator()() const {
    const auto add = [&](uint32_t index, acc_t* map) {
      const PsRoiPoolPlane plane(by, index);
      const auto add_bin = [&](uint32_t bin_y, uint32_t bin_x, const auto& for_each_roi) {
        for_each_roi([&](const auto& roi) {
          const acc_t grad = acc_t(grad_output[plane.element_of(sizes, roi.index)]);
          const PsRoiBin<acc_t> bin(sizes, roi.bins, bin_y, bin_x);
          if (grad == acc_t(0) || bin.area() == 0) return;
          add_pixels(map, bin, grad / acc_t(bin.area()));
        });
      };
      const RoiShare share = kInOrder ? RoiShare::of_warp() : RoiShare::of_thread(plan, 0);
      share.for_each_bin(plane.bins(), lists, plane.image, add_bin);
    };
    add_planes(plan, sizes.height * sizes.width, grad_input, sums, add);
  }

  D2_DEVICE void add_pixels(acc_t* map, const PsRoiBin<acc_t>& bin, acc_t value) const {
    const int32_t skip = kInOrder ? int32_t((threadIdx.x - uint32_t(bin.x_begin)) % kWarp) : 0;
    for (int64_t y = bin.y_begin; y < bin.y_end; ++y) {
      acc_t* row = map + y * sizes.width;
#pragma unroll 1
      for (int32_t x = int32_t(bin.x_begin) + skip; x < bin.x_end; x += kInOrder ? kWarp : 1) {
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
