// Conversions between tensors and the layouts of the CPU kernels, and scratch memory for these.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>

#include "../layout.h"
#include "cpu_kernels.h"

namespace d2_deformable {

// (N, C, H, W) -> [N][H][W][C] of type T. No copy if the tensor has that layout and type already.
template <typename T>
at::Tensor to_channels_last(const at::Tensor& map) {
  constexpr int64_t kPixels = 256;  // per task, so that long runs of each channel are read at once
  const at::Tensor numbers = map.to(c10::CppTypeToScalarType<T>::value);
  if (numbers.is_contiguous(at::MemoryFormat::ChannelsLast)) return numbers.permute({0, 2, 3, 1});
  const at::Tensor from = numbers.contiguous();
  const int64_t channels = map.size(1), pixels = map.size(2) * map.size(3);
  at::Tensor to = at::empty({map.size(0), map.size(2), map.size(3), channels}, from.options());
  const T* source = from.const_data_ptr<T>();
  T* target = to.mutable_data_ptr<T>();
  const auto transpose = cpu_kernels<T>().transpose;
  const int64_t tasks = (pixels + kPixels - 1) / kPixels;
  at::parallel_for(0, map.size(0) * tasks, 1 + 65536 / (channels * kPixels),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t image = i / tasks, first = i % tasks * kPixels;
                       transpose(source + image * channels * pixels + first, pixels,
                                 target + (image * pixels + first) * channels, channels, channels,
                                 std::min(kPixels, pixels - first));
                     }
                   });
  return to;
}

// Memory for `count` numbers, aligned to cache lines.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(c10::GetCPUAllocator()->allocate(count * sizeof(T))) {}
  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  c10::DataPtr memory_;
};

}  // namespace d2_deformable
