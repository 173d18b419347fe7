// What the kernels of both RoI operators do alike: blocks that own planes (roi_plan.h), with their
// plane in shared memory or in place, and threads that share out a plane's RoIs and bins.
#pragma once

#include "../../geometry/roi.h"
#include "../roi_plan.h"
#include "../simt.h"

namespace d2_deformable {

// As the kernel of rois_by_image.h lists them.
struct RoiLists {
  const int64_t* first;  // [N + 1]
  const int64_t* order;  // [R]
};

// The bins that read the channels of one group: a rectangle.
struct GroupBins {
  BinRange y, x;
  int64_t bins_w;

  D2_DEVICE GroupBins(int64_t group, int64_t group_size, int64_t bins_h, int64_t bins_w)
      : y(group / group_size, group_size, bins_h),
        x(group % group_size, group_size, bins_w),
        bins_w(bins_w) {}
  D2_DEVICE int64_t count() const { return (y.end - y.begin) * (x.end - x.begin); }
  D2_DEVICE int64_t operator[](int64_t k) const {
    const int64_t row = x.end - x.begin;
    return (y.begin + k / row) * bins_w + x.begin + k % row;
  }
};

// Calls visit(roi, bin) for this thread's share of an image's RoIs and a group's bins.
template <typename Visit>
D2_DEVICE void for_each_bin(const RoiPlan& plan, int64_t split, const RoiLists& lists,
                            int64_t image, const GroupBins& bins, const Visit& visit) {
  const int64_t lane = split * plan.roi_lanes + threadIdx.x % plan.roi_lanes;
  const int64_t end = lists.first[image + 1];
  for (int64_t k = threadIdx.x / plan.roi_lanes; k < bins.count();
       k += blockDim.x / plan.roi_lanes) {
    const int64_t bin = bins[k];
    for (int64_t i = lists.first[image] + lane; i < end; i += plan.splits * plan.roi_lanes) {
      visit(lists.order[i], bin);
    }
  }
}

// Calls visit(roi, bin) for this warp's share, in one order; all lanes of a warp see the same.
template <typename Visit>
D2_DEVICE void for_each_bin_in_order(const RoiLists& lists, int64_t image, const GroupBins& bins,
                                     const Visit& visit) {
  for (int64_t i = lists.first[image] + threadIdx.x / kWarp; i < lists.first[image + 1];
       i += blockDim.x / kWarp) {
    for (int64_t k = 0; k < bins.count(); ++k) visit(lists.order[i], bins[k]);
  }
}

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
