// What the RoI operators share on the CPU: map layout, image indices, and gradients that reach
// common pixels.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels/channels.h"
#include "../kernels/roi.h"
#include "parallel.h"

namespace d2_deformable {

// (N, Ctop*groups, H, W) -> [N][H][W][groups][Ctop]
inline at::Tensor to_grouped(const at::Tensor& map, int64_t groups) {
  return map.reshape({map.size(0), map.size(1) / groups, groups, map.size(2), map.size(3)})
      .permute({0, 3, 4, 2, 1})
      .contiguous();
}

// [N][H][W][groups][Ctop] -> (N, Ctop*groups, H, W)
inline at::Tensor from_grouped(const at::Tensor& map) {
  return map.permute({0, 4, 3, 1, 2})
      .reshape({map.size(0), map.size(3) * map.size(4), map.size(1), map.size(2)})
      .contiguous();
}

// Every image index must be one of 0 .. images - 1; NaN and fractions are not.
template <typename scalar_t>
void check_image_indices(const char* op, const scalar_t* rois, int64_t count, int64_t images) {
  for (int64_t r = 0; r < count; ++r) {
    const scalar_t index = rois[r * 5];
    const bool valid =
        index >= scalar_t(0) && index < scalar_t(images) && index == scalar_t(int64_t(index));
    TORCH_CHECK(valid, op, ": rois[", r, "] names image ", index, ", but input holds ", images,
                " images");
  }
}

// Calls scatter(i) for every i = (roi, bin, channel block). One thread owns one channel block of
// one group of one image: no two threads add to the same place, and each place is added to in the
// order of the RoIs, whatever the number of threads. Bins fall into groups_h x groups_w groups;
// `cost` is that of one call.
template <typename Sizes, typename scalar_t, typename Kernel>
void scatter_bins(const Sizes& s, int64_t groups_h, int64_t groups_w, const ChannelBlocks& blocks,
                  const scalar_t* rois, int64_t cost, const Kernel& scatter) {
  const auto scatter_item = [&](int64_t item) {
    const int64_t block = item % blocks.count();
    const int64_t group_x = item / blocks.count() % groups_w;
    const int64_t group_y = item / blocks.count() / groups_w % groups_h;
    const int64_t image = item / blocks.count() / groups_w / groups_h;
    const BinRange bins_y(group_y, groups_h, s.bins_h);
    const BinRange bins_x(group_x, groups_w, s.bins_w);
    for (int64_t roi = 0; roi < s.rois; ++roi) {
      if (int64_t(rois[roi * 5]) != image) continue;
      for (int64_t y = bins_y.begin; y < bins_y.end; ++y) {
        for (int64_t x = bins_x.begin; x < bins_x.end; ++x) {
          scatter(((roi * s.bins_h + y) * s.bins_w + x) * blocks.count() + block);
        }
      }
    }
  };
  const int64_t items = s.images * groups_h * groups_w * blocks.count();
  const int64_t calls = s.rois * s.bins() * blocks.count();
  parallel_each(items, calls * cost / std::max<int64_t>(items, 1), scatter_item);
}

}  // namespace d2_deformable
