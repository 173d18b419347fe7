// One item's channels of its image (cpu/roi_pool_call.h), channels-last.
#pragma once

#include "../roi_pool_call.h"
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

// The item's part of the input: in place, or copied to scratch, at once or, where few RoIs read
// little of a large map, tile by tile when a bin first reads there.
template <typename T>
class ItemMap {
 public:
  D2_INLINE ItemMap(const RoiPoolCall<T>& call, const RoiItem<T>& item,
                    const RoiScratch<T>& scratch)
      : data(call.in_place ? call.input + item.map(call) : scratch.map),
        call_(call),
        item_(item),
        scratch_(scratch) {
    if (call.in_place) return;
    if (!call.by_tiles) {
      copy(0, call.pixels());
      return;
    }
    for (int64_t tile = 0; tile * kRoiTile < call.pixels(); ++tile) scratch.copied[tile] = false;
  }
  const T* const data;

  // Before a bin is read.
  D2_INLINE void want(const RoiTaps<T>& y, const RoiTaps<T>& x) const {
    if (call_.in_place || !call_.by_tiles || x.size == 0) return;
    for (int64_t i = 0; i < y.size; ++i) want_row(y.taps[i].offset, x);
  }

 private:
  void want_row(int64_t row, const RoiTaps<T>& x) const {
    const int64_t tile = kRoiTile * call_.block_stride;
    const int64_t end = (row + x.taps[x.size - 1].offset) / tile;
    for (int64_t k = (row + x.taps[0].offset) / tile; k <= end; ++k) {
      if (scratch_.copied[k]) continue;
      scratch_.copied[k] = true;
      const int64_t rest = call_.pixels() - k * kRoiTile;
      copy(k * kRoiTile, rest < kRoiTile ? rest : kRoiTile);
    }
  }
  D2_INLINE void copy(int64_t pixel, int64_t pixels) const {
    transpose(call_.input + item_.map(call_) + pixel, call_.groups * call_.pixels(),
              scratch_.map + pixel * call_.block_stride, call_.block_stride, item_.channels,
              pixels);
  }
  const RoiPoolCall<T>& call_;
  const RoiItem<T>& item_;
  const RoiScratch<T>& scratch_;
};

// Also that of an image without RoIs.
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

// Where the item sums up its part of the input's gradient, filled with zeros.
template <typename T>
T* zero_gradient_map(const RoiPoolCall<T>& call, const RoiItem<T>& item, T* scratch) {
  if (call.in_place) {
    write_zero_gradient(call, item);
    return call.grad_input + item.map(call);
  }
  for (int64_t k = 0; k < call.pixels() * call.block_stride; ++k) scratch[k] = T(0);
  return scratch;
}

template <typename T>
void write_gradient_map(const RoiPoolCall<T>& call, const RoiItem<T>& item, const T* gradient) {
  if (call.in_place) return;
  transpose(gradient, call.block_stride, call.grad_input + item.map(call),
            call.groups * call.pixels(), call.pixels(), item.channels);
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
