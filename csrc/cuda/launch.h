// What host code knows of the launches, which the *.cu files instantiate (launch.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace d2_deformable {

// Blocks for which there is work, threads of each (a multiple of 32), and the dynamic shared memory
// of each.
struct Grid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

// The most threads a block of the kernel may have: 512, and 128 registers for each, unless the
// kernel has a kMaxThreads of its own. The compiler chooses the number of registers by it.
template <typename Kernel, typename = void>
constexpr int kMaxThreads = 512;
template <typename Kernel>
constexpr int kMaxThreads<Kernel, std::void_t<decltype(Kernel::kMaxThreads)>> = Kernel::kMaxThreads;

// Calls kernel() in each thread of the blocks (simt.h). Any number of blocks is right for a kernel,
// which goes from one piece of work to the next with a stride of gridDim.x: so there may be more
// pieces than a grid can have blocks.
template <typename Kernel>
cudaError_t launch(const Kernel& kernel, const Grid& grid, cudaStream_t stream);

}  // namespace d2_deformable
