// One item (../roi_pool_call.h) and its slice of the map, channels-last.
#pragma once

#include "../roi_pool_call.h"
#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

template <typename T>
struct RoiItem {
  int64_t image, bin_group, slice, channel, channels;

  D2_INLINE RoiItem(const RoiPoolCall<T>& call, int64_t item) {
    const int64_t slices = call.slices.count();
    slice = item % slices;
    bin_group = item / slices % call.bin_groups;
    image = item / slices / call.bin_groups;
    channel = call.slices.begin(slice);
    channels = call.slices.end(slice) - channel;
  }
  // Index of the item's first number in a map, and in the results of a RoI.
  D2_INLINE int64_t map(const RoiPoolCall<T>& call) const {
    if (call.in_place) return image * call.pixels() * call.top_channels + channel;
    return ((image * call.top_channels + channel) * call.bin_groups + bin_group) * call.pixels();
  }
  D2_INLINE int64_t result(const RoiPoolCall<T>& call, int64_t roi) const {
    return roi * call.bins * call.top_channels + (call.as_rows ? channel : channel * call.bins);
  }
};

template <typename T>
D2_INLINE int64_t pixel_stride(const RoiPoolCall<T>& call) {
  return call.in_place ? call.top_channels : call.slice_stride;
}

// The item's slice of the input: the input itself (in place), or a copy in scratch memory. The copy
// is made at once or, where few RoIs read little of a large map, page by page: a page is copied
// when a bin first reads from it.
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
    if (!call.by_pages) {
      copy(0, call.pixels());
      return;
    }
    for (int64_t page = 0; page * kRoiPage < call.pixels(); ++page) scratch.copied[page] = false;
  }
  const T* const data;

  // Copies the pages that a bin reads. To be called before the bin is read.
  D2_INLINE void want(const AxisPixels<T>& y, const AxisPixels<T>& x) const {
    if (call_.in_place || !call_.by_pages || x.size == 0) return;
    for (int64_t i = 0; i < y.size; ++i) want_row(y.pixels[i].offset, x);
  }

 private:
  void want_row(int64_t row, const AxisPixels<T>& x) const {
    const int64_t page = kRoiPage * call_.slice_stride;
    const int64_t end = (row + x.pixels[x.size - 1].offset) / page;
    for (int64_t k = (row + x.pixels[0].offset) / page; k <= end; ++k) {
      if (scratch_.copied[k]) continue;
      scratch_.copied[k] = true;
      const int64_t rest = call_.pixels() - k * kRoiPage;
      copy(k * kRoiPage, rest < kRoiPage ? rest : kRoiPage);
    }
  }
  D2_INLINE void copy(int64_t pixel, int64_t pixels) const {
    transpose(call_.input + item_.map(call_) + pixel, call_.bin_groups * call_.pixels(),
              scratch_.map + pixel * call_.slice_stride, call_.slice_stride, item_.channels,
              pixels);
  }
  const RoiPoolCall<T>& call_;
  const RoiItem<T>& item_;
  const RoiScratch<T>& scratch_;
};

// Clears the item's gradient. For an image without RoIs that is all.
template <typename T>
void write_zero_gradient(const RoiPoolCall<T>& call, const RoiItem<T>& item) {
  T* to = call.grad_input + item.map(call);
  const int64_t runs = call.in_place ? call.pixels() : item.channels;
  const int64_t run = call.in_place ? item.channels : call.pixels();
  const int64_t stride = call.in_place ? call.top_channels : call.bin_groups * call.pixels();
  for (int64_t k = 0; k < runs; ++k) {
    for (int64_t i = 0; i < run; ++i) to[k * stride + i] = T(0);
  }
}

// Returns where the item sums up the gradient of its slice, filled with zeros.
template <typename T>
T* zero_gradient_map(const RoiPoolCall<T>& call, const RoiItem<T>& item, T* scratch) {
  if (call.in_place) {
    write_zero_gradient(call, item);
    return call.grad_input + item.map(call);
  }
  for (int64_t k = 0; k < call.pixels() * call.slice_stride; ++k) scratch[k] = T(0);
  return scratch;
}

template <typename T>
void write_gradient_map(const RoiPoolCall<T>& call, const RoiItem<T>& item, const T* gradient) {
  if (call.in_place) return;
  transpose(gradient, call.slice_stride, call.grad_input + item.map(call),
            call.bin_groups * call.pixels(), call.pixels(), item.channels);
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
