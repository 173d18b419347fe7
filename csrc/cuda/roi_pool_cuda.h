// What the RoI operators have in common in host code.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <type_traits>

#include "kernels/roi_lists.h"
#include "launch.h"
#include "roi_plan.h"

namespace d2_deformable {

inline RoiGpu current_gpu() {
  const auto* properties = at::cuda::getCurrentDeviceProperties();
  return {properties->multiProcessorCount, int64_t(properties->sharedMemPerBlockOptin)};
}

// The kernels divide 32-bit numbers. Indices of elements have 64 bits.
inline void check_32_bits(const char* op, const char* what, int64_t count) {
  TORCH_CHECK(count < (int64_t(1) << 31), op, " on CUDA: ", count, " ", what,
              ", must be less than 2^31");
}

template <typename Kernel>
void launch_blocks(const Kernel& kernel, const Grid& grid) {
  C10_CUDA_CHECK(launch(kernel, grid, c10::cuda::getCurrentCUDAStream()));
}
template <typename Kernel>
void launch_plan(const Kernel& kernel) {
  launch_blocks(kernel, {kernel.plan.pieces(), kernel.plan.threads, kernel.plan.shared_bytes});
}

// Calls run(scalar_t()).
template <typename Run>
void dispatch_map(at::ScalarType type, const Run& run) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "d2_deformable on CUDA",
                                  [&] { run(scalar_t()); });
}

// Calls run(in_order), with in_order as a compile-time constant.
template <typename Run>
void dispatch_order(bool in_order, const Run& run) {
  in_order ? run(std::true_type()) : run(std::false_type());
}

// The gradient of input. Kernels write planes that fit into shared memory. To planes that do not
// they add in global memory, in the type of sums.
class PlaneGradient {
 public:
  PlaneGradient(const RoiPlan& plan, at::IntArrayRef input_size, const at::TensorOptions& options,
                at::ScalarType sum_type)
      : shared_(plan.shared),
        grad_(shared_ ? at::empty(input_size, options)
                      : at::zeros(input_size, options.dtype(sum_type))) {}

  template <typename scalar_t>
  scalar_t* written() const {
    return shared_ ? grad_.mutable_data_ptr<scalar_t>() : nullptr;
  }
  template <typename acc_t>
  acc_t* added_to() const {
    return shared_ ? nullptr : grad_.mutable_data_ptr<acc_t>();
  }
  at::Tensor result(at::ScalarType type, at::MemoryFormat format) const {
    return grad_.to(type, /*non_blocking=*/false, /*copy=*/false, format).contiguous(format);
  }

 private:
  const bool shared_;
  const at::Tensor grad_;  // contiguous
};

// The RoIs of each image, listed on the GPU.
template <typename acc_t, typename Bins>
class RoiListTensors {
 public:
  // rois: (R, 5) of acc_t, contiguous
  template <typename Sizes>
  RoiListTensors(const char* op, const Sizes& s, const at::Tensor& rois)
      : first_(at::empty({s.images + 1}, rois.options().dtype(at::kLong))),
        lists_(at::empty({s.rois * int64_t(sizeof(ListedRoi<Bins>))},
                         rois.options().dtype(at::kByte))) {
    TORCH_CHECK(s.images > 0 || s.rois == 0, op, ": ", s.rois, " RoIs of no images");
    const RoiListsKernel<acc_t, Bins, Sizes> kernel{s, rois.const_data_ptr<acc_t>(),
                                                    first_.mutable_data_ptr<int64_t>(), data()};
    launch_blocks(kernel, {s.images + 1, kLaunchThreads, kernel.shared_bytes(kLaunchThreads)});
  }

  RoiLists<Bins> lists() const { return {first_.const_data_ptr<int64_t>(), data()}; }

 private:
  ListedRoi<Bins>* data() const { return static_cast<ListedRoi<Bins>*>(lists_.mutable_data_ptr()); }

  at::Tensor first_, lists_;
};

}  // namespace d2_deformable
