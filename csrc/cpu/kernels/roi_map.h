// One item's channels of its image (cpu/roi_pool.h), channels-last.
#pragma once

#include "../roi_pool.h"
#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

template <typename T>
struct RoiItem {
  int64_t image, group, block, channel, channels;

  D2_INLINE RoiItem(const RoiPoolCall<T>& call, int64_t item) {
    const int64_t blocks = call.blocks.count();
    block = item % blocks;
    group = item / blocks % call.groups;
    image = item / blocks / call.groups;
    channel = call.blocks.begin(block);
    channels = call.blocks.end(block) - channel;
  }
  // The item's first number in a map, and in the results of a RoI.
  D2_INLINE int64_t map(const RoiPoolCall<T>& call) const {
    if (call.in_place) return image * call.pixels() * call.top_channels + channel;
    return ((image * call.top_channels + channel) * call.groups + group) * call.pixels();
  }
  D2_INLINE int64_t result(const RoiPoolCall<T>& call, int64_t roi) const {
    return roi * call.bins * call.top_channels + (call.as_rows ? channel : channel * call.bins);
  }
};

template <typename T>
D2_INLINE int64_t pixel_stride(const RoiPoolCall<T>& call) {
  return call.in_place ? call.top_channels : call.block_stride;
}

// The item's part of the input: in place, or copied to scratch.
template <typename T>
const T* read_map(const RoiPoolCall<T>& call, const RoiItem<T>& item, T* scratch) {
  const T* from = call.input + item.map(call);
  if (call.in_place) return from;
  transpose(from, call.groups * call.pixels(), scratch, call.block_stride, item.channels,
            call.pixels());
  return scratch;
}

// Where the item sums up its part of the input's gradient, filled with zeros.
template <typename T>
T* zero_gradient_map(const RoiPoolCall<T>& call, const RoiItem<T>& item, T* scratch) {
  T* to = call.in_place ? call.grad_input + item.map(call) : scratch;
  const int64_t channels = call.in_place ? item.channels : call.block_stride;
  for (int64_t pixel = 0; pixel < call.pixels(); ++pixel) {
    for (int64_t c = 0; c < channels; ++c) to[pixel * pixel_stride(call) + c] = T(0);
  }
  return to;
}

template <typename T>
void write_gradient_map(const RoiPoolCall<T>& call, const RoiItem<T>& item, const T* gradient) {
  if (call.in_place) return;
  transpose(gradient, call.block_stride, call.grad_input + item.map(call),
            call.groups * call.pixels(), call.pixels(), item.channels);
}

// Of an image without RoIs.
template <typename T>
void write_zero_gradient(const RoiPoolCall<T>& call, const RoiItem<T>& item) {
  T* to = call.grad_input + item.map(call);
  const int64_t runs = call.in_place ? call.pixels() : item.channels;
  const int64_t run = call.in_place ? item.channels : call.pixels();
  const int64_t stride = call.in_place ? call.top_channels : call.groups * call.pixels();
  for (int64_t k = 0; k < runs; ++k) {
    for (int64_t i = 0; i < run; ++i) to[k * stride + i] = T(0);
  }
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
