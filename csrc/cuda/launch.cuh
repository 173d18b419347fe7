// Launches of kernel functors; included by the *.cu files alone. Free of ATen, so that compiling
// for one more architecture takes seconds.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <limits>

#include "launch.h"

// Instantiates the launch of Kernel<scalar_t, acc_t, more...> for every type of map: by the number
// of its calls, or (D2_INSTANTIATE_GRID_LAUNCH) by its grid.
#define D2_INSTANTIATE_LAUNCH(Kernel, ...) \
  D2_INSTANTIATE_FOR_TYPES(int64_t, Kernel __VA_OPT__(, ) __VA_ARGS__)
#define D2_INSTANTIATE_GRID_LAUNCH(Kernel, ...) \
  D2_INSTANTIATE_FOR_TYPES(const Grid&, Kernel __VA_OPT__(, ) __VA_ARGS__)
#define D2_INSTANTIATE_FOR_TYPES(extent_t, Kernel, ...)                                   \
  D2_INSTANTIATE_LAUNCH_OF(extent_t, Kernel<double, double __VA_OPT__(, ) __VA_ARGS__>)   \
  D2_INSTANTIATE_LAUNCH_OF(extent_t, Kernel<float, float __VA_OPT__(, ) __VA_ARGS__>)     \
  D2_INSTANTIATE_LAUNCH_OF(extent_t, Kernel<c10::Half, float __VA_OPT__(, ) __VA_ARGS__>) \
  D2_INSTANTIATE_LAUNCH_OF(extent_t, Kernel<c10::BFloat16, float __VA_OPT__(, ) __VA_ARGS__>)
#define D2_INSTANTIATE_LAUNCH_OF(extent_t, ...) \
  template cudaError_t launch(const __VA_ARGS__&, extent_t, cudaStream_t);

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

// 1: without it the assembler takes fewer registers than it needs, and spills the rest.
template <typename Kernel>
__global__ void __launch_bounds__(kMaxThreads<Kernel>, 1) run_block(const Kernel kernel) {
  kernel();
}

template <typename Kernel>
cudaError_t launch(const Kernel& kernel, const Grid& grid, cudaStream_t stream) {
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.threads > kMaxThreads<Kernel>) return cudaErrorInvalidConfiguration;
  const int64_t blocks = std::min<int64_t>(grid.blocks, std::numeric_limits<int32_t>::max());
  if (grid.shared_bytes > (48 << 10)) {  // CUDA wants to be asked for more
    const cudaError_t error = cudaFuncSetAttribute(
        run_block<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  return cudaLaunchKernel(run_block<Kernel>, dim3(unsigned(blocks)), dim3(grid.threads), arguments,
                          size_t(grid.shared_bytes), stream);
}

}  // namespace d2_deformable
