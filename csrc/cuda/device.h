// How kernel functors run on a GPU, seen from the host. No file here is compiled by nvcc but *.cu.
#pragma once

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>

#include "launch.h"

namespace d2_deformable {

// cpu/device.h has the same members: the operators' host code is written for either.
struct Cuda {
  using Add = AtomicAdd;

  static constexpr int64_t kColumnBytes = 32 << 20;
  // Short blocks: neighbouring threads then read neighbouring channels.
  static constexpr int64_t kLongBlock = 8;
  static constexpr int64_t kBlock = 8;

  static at::ScalarType compute_type(at::ScalarType type) { return type; }

  template <typename Run>
  static void dispatch(at::ScalarType type, const Run& run) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "d2_deformable on CUDA",
                                    [&] { run(scalar_t()); });
  }

  // Atomic adds come in any order.
  static void alert_not_deterministic(const char* op) {
    at::globalContext().alertNotDeterministic(op);
  }

  template <typename Kernel>
  static void run(const Kernel& kernel, int64_t count, int64_t /*cost*/) {
    C10_CUDA_CHECK(launch(kernel, count, c10::cuda::getCurrentCUDAStream()));
  }
  template <typename Kernel>
  static void run_adding_rows(const Kernel& kernel, int64_t cost) {
    run(kernel, kernel.count(), cost);
  }
  template <typename Kernel>
  static void run_adding_bins(const Kernel& kernel, int64_t, int64_t, int64_t cost) {
    run(kernel, kernel.count(), cost);
  }

  // The kernels do (geometry/roi.h): here it would wait for the GPU.
  template <typename T>
  static void check_image_indices(const char*, const T*, int64_t, int64_t) {}
};

}  // namespace d2_deformable
