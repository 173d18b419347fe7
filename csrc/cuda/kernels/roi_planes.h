// What the kernels of both RoI operators do alike: blocks that own planes (roi_plan.h), with their
// plane in shared memory or in place, and threads that share out a plane's RoIs and bins.
#pragma once

#include "../roi_plan.h"
#include "../simt.h"
#include "roi_lists.h"

namespace d2_deformable {

// The bins that read the channels of one group: a rectangle.
struct GroupBins {
  uint32_t y_begin, y_end, x_begin, x_end;

  D2_DEVICE uint32_t count() const { return (y_end - y_begin) * (x_end - x_begin); }
};

// This thread's share of a group's bins and an image's RoIs: the first of each, and the stride.
struct RoiShare {
  uint32_t bin, bin_stride, roi, roi_stride;

  static D2_DEVICE RoiShare of_thread(const RoiPlan& plan, uint32_t split) {
    uint32_t lane = threadIdx.x, threads = blockDim.x;
    const uint32_t lanes = plan.roi_lanes.divisor();
    const uint32_t bin = plan.roi_lanes.divide(lane), bins = plan.roi_lanes.divide(threads);
    return {bin, bins, split * lanes + lane, plan.splits.divisor() * lanes};
  }
  // That of its warp: all lanes see the same.
  static D2_DEVICE RoiShare of_warp() { return {0, 1, threadIdx.x / kWarp, blockDim.x / kWarp}; }

  // Calls visit(bin_y, bin_x, for_each_roi), which calls for_each_roi(visit_roi): what a bin has in
  // common for all RoIs is computed in between, once.
  template <typename Lists, typename Visit>
  D2_DEVICE void for_each_bin(const GroupBins& bins, const Lists& lists, int64_t image,
                              const Visit& visit) const {
#pragma unroll 1
    for (uint32_t k = bin; k < bins.count(); k += bin_stride) {
      const uint32_t width = bins.x_end - bins.x_begin;
      visit(bins.y_begin + k / width, bins.x_begin + k % width, [&](const auto& visit_roi) {
        const auto* const end = lists.rois + lists.first[image + 1];
#pragma unroll 1
        for (const auto* listed = lists.rois + lists.first[image] + roi; listed < end;
             listed += roi_stride) {
          visit_roi(*listed);
        }
      });
    }
  }
};

// Copies a plane, its inner part by 16 bytes: to `shared` or a few bytes beyond, where it has the
// same place between 16-byte boundaries. Returns where it starts.
template <typename scalar_t>
D2_DEVICE const scalar_t* copy_plane(const scalar_t* plane, int64_t pixels, scalar_t* shared) {
  constexpr int kSize = Pack<scalar_t>::kSize;
  const int64_t shift = reinterpret_cast<uintptr_t>(plane) % 16 / sizeof(scalar_t);
  scalar_t* const copy = shared + shift;
  const int64_t head = shift == 0 ? 0 : (kSize - shift < pixels ? kSize - shift : pixels);
  const int64_t packs = (pixels - head) / kSize, tail = head + packs * kSize;
  for (int64_t k = threadIdx.x; k < packs; k += blockDim.x) {
    const int64_t pixel = head + k * kSize;
    // (Pack::store() is for global memory.)
    *reinterpret_cast<uint4*>(copy + pixel) = __ldg(reinterpret_cast<const uint4*>(plane + pixel));
  }
  for (int64_t k = threadIdx.x; k < head; k += blockDim.x) copy[k] = plane[k];
  for (int64_t k = tail + threadIdx.x; k < pixels; k += blockDim.x) copy[k] = plane[k];
  return copy;
}

// For all pieces of work of this block: visit(plane, split, where the plane can be read). visit is
// compiled twice, so that reads of shared memory are known for such.
template <typename scalar_t, typename Visit>
D2_DEVICE void read_planes(const RoiPlan& plan, int64_t pixels, const scalar_t* input,
                           const Visit& visit) {
  D2_SHARED(scalar_t, shared);
  for (int64_t piece = blockIdx.x; piece < plan.pieces(); piece += gridDim.x) {
    uint32_t split = uint32_t(piece);
    const uint32_t plane = plan.splits.divide(split);
    const scalar_t* const pixel = input + plane * pixels;
    if (plan.shared) {
      const scalar_t* const copy = copy_plane(pixel, pixels, shared);
      __syncthreads();
      visit(plane, split, copy);
      __syncthreads();  // before the next plane is copied
    } else {
      visit(plane, split, pixel);
    }
  }
}

// For all planes of this block: add(plane, where to add the plane's gradient). In shared memory
// that starts at zero, and the sum over the copies (one per warp, or one) becomes the plane of
// `output`; else it is the plane of `sums`, which the host has filled with zeros.
template <typename scalar_t, typename acc_t, typename Add>
D2_DEVICE void add_planes(const RoiPlan& plan, int64_t pixels, scalar_t* output, acc_t* sums,
                          const Add& add) {
  D2_SHARED(acc_t, shared);
  for (int64_t plane = blockIdx.x; plane < plan.planes; plane += gridDim.x) {
    if (!plan.shared) {
      add(plane, sums + plane * pixels);
      continue;
    }
    for (int64_t k = threadIdx.x; k < plan.copies * pixels; k += blockDim.x) shared[k] = acc_t(0);
    __syncthreads();
    add(plane, shared + threadIdx.x / kWarp % plan.copies * pixels);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < pixels; k += blockDim.x) {
      acc_t sum = shared[k];
      for (int copy = 1; copy < plan.copies; ++copy) sum += shared[copy * pixels + k];
      output[plane * pixels + k] = scalar_t(sum);
    }
    __syncthreads();  // before the next plane is cleared
  }
}

}  // namespace d2_deformable
