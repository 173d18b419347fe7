// Launches kernels. Only the *.cu files include this file. Free of ATen, so that one more
// architecture costs seconds of compile time.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <limits>

#include "launch.h"

// Instantiates launch() of Kernel<scalar_t, acc_t, more...> for every type of map.
#define D2_INSTANTIATE_LAUNCH(Kernel, ...)                                      \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<double, double __VA_OPT__(, ) __VA_ARGS__>)   \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<float, float __VA_OPT__(, ) __VA_ARGS__>)     \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<c10::Half, float __VA_OPT__(, ) __VA_ARGS__>) \
  D2_INSTANTIATE_LAUNCH_OF(Kernel<c10::BFloat16, float __VA_OPT__(, ) __VA_ARGS__>)
#define D2_INSTANTIATE_LAUNCH_OF(...) \
  template cudaError_t launch(const __VA_ARGS__&, const Grid&, cudaStream_t);

// d2_deformable/utils/library.py finds this text in the file. Only nvcc defines the list.
#ifdef __CUDA_ARCH_LIST__
#define D2_TEXT_OF(...) #__VA_ARGS__
#define D2_TEXT(...) D2_TEXT_OF(__VA_ARGS__)
__attribute__((used)) static const char kArchitectures[] =
    "d2_deformable built for CUDA architectures " D2_TEXT(__CUDA_ARCH_LIST__);
#endif

namespace d2_deformable {

// Asks for one block per processor, so that the compiler does not spill registers to make room for
// more.
template <typename Kernel>
__global__ void __launch_bounds__(kMaxThreads<Kernel>, 1) run_block(const Kernel kernel) {
  kernel();
}

template <typename Kernel>
cudaError_t launch(const Kernel& kernel, const Grid& grid, cudaStream_t stream) {
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.threads > kMaxThreads<Kernel>) return cudaErrorInvalidConfiguration;
  const int64_t blocks = std::min<int64_t>(grid.blocks, std::numeric_limits<int32_t>::max());
  if (grid.shared_bytes > (48 << 10)) {  // more than this has to be requested
    const cudaError_t error = cudaFuncSetAttribute(
        run_block<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  return cudaLaunchKernel(run_block<Kernel>, dim3(unsigned(blocks)), dim3(grid.threads), arguments,
                          size_t(grid.shared_bytes), stream);
}

}  // namespace d2_deformable
