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
      .reshape({map.size(0), map.size(3) * map.size(4), map.size(1), map.size(2)});
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
// order of the RoIs, whatever the number of threads. Bins fall into groups_h x groups_w groups.
template <typename scalar_t, typename Kernel>
void scatter_bins(const scalar_t* rois, int64_t count, int64_t images, int64_t bins_h,
                  int64_t bins_w, int64_t groups_h, int64_t groups_w, const ChannelBlocks& blocks,
                  const Kernel& scatter) {
  const int64_t groups = groups_h * groups_w;
  at::parallel_for(0, images * groups * blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item % blocks.count(), group = item / blocks.count() % groups;
      const int64_t image = item / blocks.count() / groups;
      const BinRange bins_y(group / groups_w, groups_h, bins_h),
          bins_x(group % groups_w, groups_w, bins_w);
      for (int64_t roi = 0; roi < count; ++roi) {
        if (int64_t(rois[roi * 5]) != image) continue;
        for (int64_t y = bins_y.begin; y < bins_y.end; ++y) {
          for (int64_t x = bins_x.begin; x < bins_x.end; ++x) {
            scatter(((roi * bins_h + y) * bins_w + x) * blocks.count() + block);
          }
        }
      }
    }
  });
}

}  // namespace d2_deformable
