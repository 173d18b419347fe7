// What the kernels of the RoI operators have in common. A block works on planes (roi_plan.h), in
// shared memory or in place, and its threads share the RoIs and bins of a plane.
#pragma once

#include "../roi_plan.h"
#include "../simt.h"
#include "roi_lists.h"

namespace d2_deformable {

// Bins that read the same channels. They form a rectangle.
struct BinGroup {
  uint32_t y_begin, y_end, x_begin, x_end;

  D2_DEVICE uint32_t count() const { return (y_end - y_begin) * (x_end - x_begin); }
};

// A thread's share of a bin group's bins and an image's RoIs: the first of each, and the stride.
struct RoiShare {
  uint32_t bin, bin_stride, roi, roi_stride;

  static D2_DEVICE RoiShare of_thread(const RoiPlan& plan, uint32_t split) {
    const uint32_t rois = plan.roi_threads.divisor(), bins = plan.roi_threads.quotient(blockDim.x);
    const auto [bin, roi] = plan.roi_threads.divide(threadIdx.x);
    return {bin, bins, split * rois + roi, plan.splits.divisor() * rois};
  }
  // The share of a thread's warp, the same for all its lanes.
  static D2_DEVICE RoiShare of_warp() { return {0, 1, threadIdx.x / kWarp, blockDim.x / kWarp}; }

  // Calls visit(bin_y, bin_x, for_each_roi) for each bin. visit computes once what the bin has in
  // common for all RoIs, then calls for_each_roi(visit_roi).
  template <typename Lists, typename Visit>
  D2_DEVICE void for_each_bin(const BinGroup& bins, const Lists& lists, int64_t image,
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

// Copies a plane to shared memory, except for its ends in packs of 16 bytes. The copy starts up to
// 15 bytes after `shared`, where it has the same alignment as the plane. Returns its start.
template <typename scalar_t>
D2_DEVICE const scalar_t* copy_plane(const scalar_t* plane, int64_t pixels, scalar_t* shared) {
  constexpr int kSize = Pack<scalar_t>::kSize;
  const int64_t begin = reinterpret_cast<uintptr_t>(plane) % 16 / sizeof(scalar_t);
  scalar_t* const copy = shared + begin;
  const int64_t head = begin == 0 ? 0 : (kSize - begin < pixels ? kSize - begin : pixels);
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

// Calls visit(plane, split, pixels of the plane) for all pieces of this block. visit is compiled
// twice, so that the compiler knows which reads are of shared memory.
template <typename scalar_t, typename Visit>
D2_DEVICE void read_planes(const RoiPlan& plan, int64_t pixels, const scalar_t* input,
                           const Visit& visit) {
  D2_SHARED(scalar_t, shared);
  for (int64_t piece = blockIdx.x; piece < plan.pieces(); piece += gridDim.x) {
    const auto [plane, split] = plan.splits.divide(uint32_t(piece));
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

// Calls add(plane, where to add the plane's gradient) for all planes of this block. A plane in
// shared memory starts at zero, and the sum over its copies (one per warp, or one) is written to
// `output`. For a plane in place, add adds to `sums`, which the host has filled with zeros.
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
