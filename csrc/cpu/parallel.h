// Runs a kernel functor on the CPU.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

namespace d2_deformable {

// Channels per block on the CPU: long enough to hide the work per block, short enough to leave some
// blocks to each thread. A constant, because results must not depend on the number of threads.
constexpr int64_t kCpuBlockChannels = 64;

// Calls kernel(i) for 0 <= i < count, in any order, at the same time where there is enough to do:
// `cost` is what one call costs, roughly, in multiply-adds.
template <typename Kernel>
void parallel_each(int64_t count, int64_t cost, const Kernel& kernel) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(cost, 1));
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel(i);
  });
}

}  // namespace d2_deformable
