// The part of CUDA that csrc/cuda/launch.cuh and simt.h use, in plain C++; ../blocks.cpp runs it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>

#include "../memory.h"

#define __global__
#define __launch_bounds__(...)

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = struct CUstream_st*;

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_emulator {

// Seed of the order of blocks and threads. 0: in order, on the grid as launched. Otherwise:
// shuffled, on a grid of that many blocks, so that each does the work of many.
inline unsigned seed = 0;

// Runs call(kernel, arguments) in every thread.
using Kernel = void (*)();
using Call = void (*)(Kernel kernel, void** arguments);
cudaError_t run_grid(dim3 grid, dim3 block, size_t shared_bytes, Call call, Kernel kernel,
                     void** arguments);

// What a thread does together with others of its block. line: source line.
void* shared_memory();
void barrier(int line);
uint64_t exchange(unsigned lanes, uint64_t value, int source_lane, int line);

// Marks functions that emulate the hardware: their own reads and writes are not checked.
#define D2_HARDWARE __attribute__((no_sanitize("thread"), noinline))

template <typename... Parameters, size_t... k>
D2_HARDWARE void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<k...>) {
  kernel(*static_cast<Parameters*>(arguments[k])...);
}
template <typename... Parameters>
void call(Kernel kernel, void** arguments) {
  call(reinterpret_cast<void (*)(Parameters...)>(kernel), arguments,
       std::index_sequence_for<Parameters...>());
}

inline std::map<Kernel, size_t> max_shared_bytes;  // of kernels that exceed the default limit

}  // namespace cuda_emulator

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (bytes > (227 << 10)) return cudaErrorInvalidValue;  // of sm_90
  cuda_emulator::max_shared_bytes[cuda_emulator::Kernel(kernel)] = bytes;
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  const auto any = cuda_emulator::Kernel(kernel);
  const size_t max_bytes = std::max<size_t>(48 << 10, cuda_emulator::max_shared_bytes[any]);
  if (shared_bytes > max_bytes) return cudaErrorInvalidValue;
  return cuda_emulator::run_grid(grid, block, shared_bytes, cuda_emulator::call<Parameters...>, any,
                                 arguments);
}

inline void __syncthreads(int line = __builtin_LINE()) { cuda_emulator::barrier(line); }

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int lane_mask, int line = __builtin_LINE()) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_emulator::exchange(lanes, bits, int(threadIdx.x % 32) ^ lane_mask, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline void __stwb(uint4* address, uint4 value) { *address = value; }

// The types that the hardware adds atomically: float, double and (below) float4.
template <typename T, typename = std::enable_if_t<std::is_floating_point_v<T>>>
D2_HARDWARE void atomicAdd(T* address, T value) {
  cuda_emulator::use(address, sizeof(T), cuda_emulator::Use::kAdd, __builtin_return_address(0));
  *address += value;
}
D2_HARDWARE inline void atomicAdd(float4* address, float4 value) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(float4) != 0) {
    cuda_emulator::fail("misaligned address of an atomic add: %p", static_cast<void*>(address));
  }
  float* to = reinterpret_cast<float*>(address);
  atomicAdd(to, value.x), atomicAdd(to + 1, value.y);
  atomicAdd(to + 2, value.z), atomicAdd(to + 3, value.w);
}
