// Launches of kernel functors; included by the *.cu files alone. Free of ATen, so that compiling
// for one more architecture takes seconds.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "launch.h"

// Instantiates the launch of Kernel<scalar_t, acc_t, more...> for every type of map.
#define D2_INSTANTIATE_LAUNCH(Kernel, ...)                                      \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<double, double __VA_OPT__(, ) __VA_ARGS__>)   \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<float, float __VA_OPT__(, ) __VA_ARGS__>)     \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<c10::Half, float __VA_OPT__(, ) __VA_ARGS__>) \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<c10::BFloat16, float __VA_OPT__(, ) __VA_ARGS__>)
#define D2_INSTANTIATE_LAUNCH_OF(...) \
  template cudaError_t launch(const __VA_ARGS__&, int64_t, cudaStream_t);

namespace d2_deformable {

constexpr int kThreadsPerBlock = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // enough to fill any GPU; the kernel loops over the rest

// One thread calls kernel(i) for its own i, then for those a whole grid further on.
template <typename Kernel>
__global__ void __launch_bounds__(kThreadsPerBlock) run(const Kernel kernel, const int64_t count) {
  const int64_t grid = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += grid) kernel(i);
}

template <typename Kernel>
cudaError_t launch(const Kernel& kernel, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;  // an empty grid is an error to CUDA
  const int64_t blocks = std::min((count + kThreadsPerBlock - 1) / kThreadsPerBlock, kMaxBlocks);
  void* arguments[] = {const_cast<Kernel*>(&kernel), &count};
  return cudaLaunchKernel(run<Kernel>, dim3(unsigned(blocks)), dim3(kThreadsPerBlock), arguments, 0,
                          stream);
}

}  // namespace d2_deformable
