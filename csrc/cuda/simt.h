// What the threads of a block share and do together; kernels (launch.h) use CUDA through these
// functions. Free of ATen. nvcc compiles it for GPUs, and g++ for tests/cuda_emulator. The compiler
// of the host code reads the kernels too, to fill in their data, and calls none of these functions.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#if defined(__CUDACC__)
#define D2_DEVICE __device__ inline
#else
#define D2_DEVICE inline
#endif

// Declares T* name, the block's dynamic shared memory: Grid::shared_bytes, 16-byte aligned. Every
// use refers to the same memory.
#if defined(D2_CUDA_EMULATOR)
#define D2_SHARED(T, name) T* const name = static_cast<T*>(cuda_emulator::shared_memory())
#else
#define D2_SHARED(T, name)                    \
  extern __shared__ uint4 d2_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(d2_shared_memory)
#endif

#if !defined(__CUDACC__) && !defined(D2_CUDA_EMULATOR)
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
void __syncthreads();
template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int lane_mask);
template <typename T>
T __ldg(const T* address);
void __stwb(uint4* address, uint4 value);
template <typename T>
T atomicAdd(T* address, T value);
#endif

namespace d2_deformable {

// Sum over `lanes` neighbouring lanes, returned to each of them. `lanes` is a power of two up
// to 32. All threads of the warp must take part; blocks have a multiple of 32 threads.
template <typename T>
D2_DEVICE T warp_sum(T value, int lanes = 32) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

// Adds to memory that several threads add to.
template <typename T>
D2_DEVICE void atomic_add(T* address, T value) {
  atomicAdd(address, value);
}

// Adds to four consecutive floats, 16-byte aligned; one instruction from sm_90 on. Each add is
// atomic, the four together are not.
D2_DEVICE void atomic_add4(float* address, float x, float y, float z, float w) {
#if defined(D2_CUDA_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  atomicAdd(reinterpret_cast<float4*>(address), make_float4(x, y, z, w));
#else
  atomic_add(address, x), atomic_add(address + 1, y);
  atomic_add(address + 2, z), atomic_add(address + 3, w);
#endif
}

// 16 bytes of consecutive values, moved by one instruction. Addresses are 16-byte aligned.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];

  D2_DEVICE T& operator[](int k) { return values[k]; }
  D2_DEVICE const T& operator[](int k) const { return values[k]; }

  static D2_DEVICE Pack load(const T* address) { return *reinterpret_cast<const Pack*>(address); }
  // Reads through the read-only cache. Nobody may write this memory while the kernel runs.
  static D2_DEVICE Pack load_constant(const T* address) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(address));
    Pack pack;
    std::memcpy(&pack, &bits, sizeof(pack));
    return pack;
  }
  D2_DEVICE void store(T* address) const {
    uint4 bits;
    std::memcpy(&bits, this, sizeof(bits));
    // nvcc would split an assignment into several stores.
    __stwb(reinterpret_cast<uint4*>(address), bits);
  }
};

}  // namespace d2_deformable
