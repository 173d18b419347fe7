// Code shared by the drivers of the RoI operators.
#pragma once

#include "cuda/kernels/roi_lists.h"
#include "cuda/roi_plan.h"
#include "driver.h"

namespace cuda_emulator {

// The RoIs of each image, listed by a launch before that of the kernel.
template <typename acc_t, typename Bins>
struct ListedRois {
  template <typename Sizes>
  ListedRois(const Sizes& sizes, const Array<acc_t>& rois)
      : first(sizes.images + 1), lists(sizes.rois * sizeof(d2_deformable::ListedRoi<Bins>)) {
    const d2_deformable::RoiListsKernel<acc_t, Bins, Sizes> kernel{sizes, rois.data(), first.data(),
                                                                   data()};
    constexpr int threads = 32;
    launch_grid(kernel, {sizes.images + 1, threads, kernel.shared_bytes(threads)});
  }
  d2_deformable::RoiLists<Bins> get() const { return {first.data(), data()}; }
  d2_deformable::ListedRoi<Bins>* data() const {
    return reinterpret_cast<d2_deformable::ListedRoi<Bins>*>(lists.data());
  }

  Array<int64_t> first;
  Array<char> lists;
};

template <typename Kernel>
void launch_plan(const Kernel& kernel) {
  launch_grid(kernel, {kernel.plan.pieces(), kernel.plan.threads, kernel.plan.shared_bytes});
}

// Runs launch(planes to write to, planes to add to), then writes the gradient in the maps' type.
template <typename scalar_t, typename acc_t, typename Launch>
void write_gradient(const d2_deformable::RoiPlan& plan, int64_t pixels, File& out,
                    const Launch& launch) {
  const int64_t size = plan.planes * pixels;
  Array<scalar_t> gradient(size);
  if (plan.shared) {
    launch(gradient.data(), static_cast<acc_t*>(nullptr));
  } else {
    Array<acc_t> sums(size, 0);
    launch(static_cast<scalar_t*>(nullptr), sums.data());
    std::copy_n(sums.data(), size, gradient.data());
  }
  out.write(gradient);
}

}  // namespace cuda_emulator
