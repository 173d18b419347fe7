// Declares launch() for host code. The *.cu files instantiate it (launch.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

namespace d2_deformable {

// Number of blocks that have work, and per block its threads (a multiple of 32) and its dynamic
// shared memory.
struct Grid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

// The most threads that a block of the kernel may have: 512, which leaves 128 registers per thread,
// unless the kernel has its own kMaxThreads. It limits the registers that the compiler uses.
template <typename Kernel, typename = void>
constexpr int kMaxThreads = 512;
template <typename Kernel>
constexpr int kMaxThreads<Kernel, std::void_t<decltype(Kernel::kMaxThreads)>> = Kernel::kMaxThreads;

// Calls kernel() in each thread of each block (simt.h). A kernel is correct for any number of
// blocks: its blocks loop over the work with a stride of gridDim.x. So there may be more work than
// a grid can have blocks.
template <typename Kernel>
cudaError_t launch(const Kernel& kernel, const Grid& grid, cudaStream_t stream);

}  // namespace d2_deformable
