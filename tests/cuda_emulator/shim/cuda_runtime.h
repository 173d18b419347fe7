// As much of CUDA as csrc/cuda/launch.cuh uses, in plain C++: the threads of a launch run one after
// another on the CPU, in a shuffled order, with sanitizers watching.
//
// Order alone would hide races, so threads do not see each other: the memory of a Result is full of
// NaNs whenever a thread starts, and what it wrote is put aside when it ends. Two threads that
// write one element, or write what others add to, stop the process; a thread that reads what
// another wrote reads NaN; an element that nobody wrote stays NaN. Only atomicAdd() goes past this.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_emulator {

// Of the threads' order. 0: the grid as launched; else one of a few threads, so that each has to
// do the work of many.
inline unsigned seed = 0;

template <typename... Values>
[[noreturn]] void fail(const char* format, Values... values) {
  std::fprintf(stderr, "cuda_emulator: ");
  std::fprintf(stderr, format, values...);
  std::fprintf(stderr, "\n");
  std::abort();
}

class AnyResult {
 public:
  AnyResult() { all.push_back(this); }
  virtual ~AnyResult() { all.erase(std::find(all.begin(), all.end(), this)); }
  AnyResult(const AnyResult&) = delete;
  AnyResult& operator=(const AnyResult&) = delete;

  virtual void collect(int64_t thread) = 0;

  inline static std::vector<AnyResult*> all;
};

// The only memory that kernels may write, for one launch.
template <typename T>
class Result : public AnyResult {
 public:
  explicit Result(int64_t size, T initial = nan())
      : memory_(size, nan()), values_(size, initial), writers_(size, kNobody) {}

  T* data() { return memory_.data(); }
  const std::vector<T>& values() const { return values_; }

  bool holds(const T* address) const {
    return address >= memory_.data() && address < memory_.data() + memory_.size();
  }

  void add(const T* address, T value) {
    const int64_t element = address - memory_.data();
    if (writers_[element] >= 0) mixed(element);
    writers_[element] = kAdders;
    values_[element] += value;
  }

  void collect(int64_t thread) override {
    const T unwritten = nan();
    for (size_t element = 0; element < memory_.size(); ++element) {
      if (std::memcmp(&memory_[element], &unwritten, sizeof(T)) == 0) continue;
      if (writers_[element] == kAdders) mixed(element);
      if (writers_[element] != kNobody) {
        fail("race: threads %lld and %lld write element %lld of one result",
             (long long)writers_[element], (long long)thread, (long long)element);
      }
      writers_[element] = thread;
      values_[element] = memory_[element];
      memory_[element] = unwritten;
    }
  }

 private:
  static constexpr int64_t kNobody = -1, kAdders = -2;

  // A signalling one: an add that is not atomic makes it a quiet one, and so is seen as a write.
  // (Nobody adds to half precision, where torch's signaling_NaN() is none.)
  static T nan() {
    using Limits = std::numeric_limits<T>;
    return std::is_floating_point_v<T> ? Limits::signaling_NaN() : Limits::quiet_NaN();
  }
  [[noreturn]] static void mixed(int64_t element) {
    fail("race: element %lld of one result is written and added to", (long long)element);
  }

  std::vector<T> memory_;
  std::vector<T> values_;
  std::vector<int64_t> writers_;
};

template <typename Body>
cudaError_t run_grid(dim3 grid, dim3 block, const Body& body) {
  if (grid.x == 0 || block.x == 0 || block.x > 1024) return cudaErrorInvalidConfiguration;
  if (grid.y * grid.z * block.y * block.z != 1) fail("only grids of one dimension run here");
  std::mt19937_64 random(seed);
  if (seed != 0) {
    grid.x = 2 + random() % 2;
    block.x = 2 + random() % 6;
  }
  std::vector<int64_t> threads(int64_t(grid.x) * block.x);
  for (size_t k = 0; k < threads.size(); ++k) threads[k] = k;
  std::shuffle(threads.begin(), threads.end(), random);
  gridDim = grid, blockDim = block;
  for (const int64_t thread : threads) {
    blockIdx = {unsigned(thread / block.x), 0, 0};
    threadIdx = {unsigned(thread % block.x), 0, 0};
    body();
    for (AnyResult* result : AnyResult::all) result->collect(thread);
  }
  return cudaSuccess;
}

template <typename... Parameters, size_t... k>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<k...>) {
  kernel(*static_cast<Parameters*>(arguments[k])...);
}

}  // namespace cuda_emulator

// Block kernels compile, and do not run yet.
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
namespace cuda_emulator {
inline void* shared_memory() { fail("no shared memory yet"); }
}  // namespace cuda_emulator
inline void __syncthreads() { cuda_emulator::fail("no barriers yet"); }
template <typename T>
T __shfl_xor_sync(unsigned, T, int) {
  cuda_emulator::fail("no warps yet");
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline void atomicAdd(float4*, float4) { cuda_emulator::fail("no vectors yet"); }
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                             size_t /*shared memory*/, cudaStream_t) {
  return cuda_emulator::run_grid(grid, block, [&] {
    cuda_emulator::call(kernel, arguments, std::index_sequence_for<Parameters...>());
  });
}

// float, double: what the hardware adds to.
template <typename T>
void atomicAdd(T* address, T value) {
  static_assert(std::is_floating_point_v<T>);
  for (cuda_emulator::AnyResult* any : cuda_emulator::AnyResult::all) {
    auto* result = dynamic_cast<cuda_emulator::Result<T>*>(any);
    if (result && result->holds(address)) return result->add(address, value);
  }
  cuda_emulator::fail("atomicAdd outside of every result, at %p", static_cast<void*>(address));
}
