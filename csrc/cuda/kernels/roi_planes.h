// What the kernels of both RoI operators do alike: blocks that own planes (roi_plan.h), with their
// plane in shared memory or in place, and threads that share out a plane's RoIs and bins.
#pragma once

#include "../roi_plan.h"
#include "../simt.h"
#include "roi_lists.h"

namespace d2_deformable {

// The bins that read the channels of one group: a rectangle.
struct GroupBins {
  BinRange y, x;

  D2_DEVICE int64_t count() const { return (y.end - y.begin) * (x.end - x.begin); }
  D2_DEVICE int64_t bin_y(int64_t k) const { return y.begin + k / (x.end - x.begin); }
  D2_DEVICE int64_t bin_x(int64_t k) const { return x.begin + k % (x.end - x.begin); }
};

// This thread's share of a group's bins and an image's RoIs: the first of each, and the stride.
struct RoiShare {
  int64_t bin, bin_stride, roi, roi_stride;

  D2_DEVICE RoiShare(const RoiPlan& plan, int64_t split)
      : bin(threadIdx.x / plan.roi_lanes),
        bin_stride(blockDim.x / plan.roi_lanes),
        roi(split * plan.roi_lanes + threadIdx.x % plan.roi_lanes),
        roi_stride(plan.splits * plan.roi_lanes) {}

  // The share of this thread's warp: all its lanes see the same.
  static D2_DEVICE RoiShare of_warp() { return {0, 1, threadIdx.x / kWarp, blockDim.x / kWarp}; }

  // Calls visit(bin_y, bin_x, visit_rois), which calls visit_rois(visit_roi): what bins have in
  // common for all RoIs is computed in between, once.
  template <typename Lists, typename Visit>
  D2_DEVICE void for_each_bin(const GroupBins& bins, const Lists& lists, int64_t image,
                              const Visit& visit) const {
    const int64_t begin = lists.first[image] + roi, end = lists.first[image + 1];
#pragma unroll 1
    for (int64_t k = bin; k < bins.count(); k += bin_stride) {
      visit(bins.bin_y(k), bins.bin_x(k), [&](const auto& visit_roi) {
#pragma unroll 1
        for (int64_t i = begin; i < end; i += roi_stride) visit_roi(lists.rois[i]);
      });
    }
  }

 private:
  D2_DEVICE RoiShare(int64_t bin, int64_t bin_stride, int64_t roi, int64_t roi_stride)
      : bin(bin), bin_stride(bin_stride), roi(roi), roi_stride(roi_stride) {}
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
    Pack<scalar_t>::load_constant(plane + pixel).store(copy + pixel);
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
  for (int64_t piece = blockIdx.x; piece < plan.planes * plan.splits; piece += gridDim.x) {
    const int64_t plane = piece / plan.splits, split = piece % plan.splits;
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
