// Position-sensitive RoI pooling of one item (../roi_pool_call.h), whose channels belong to one
// bin.
#pragma once

#include "roi_item.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

template <typename T>
D2_INLINE AxisPixels<T> list_pixels(int64_t begin, int64_t end, int64_t stride,
                                    AxisPixel<T>* pixels) {
  for (int64_t k = begin; k < end; ++k) pixels[k - begin] = {k * stride, T(1), T(0)};
  const int64_t size = end > begin ? end - begin : 0;
  return {pixels, size, T(size)};
}

// Calls visit(bin, first channel, last channel + 1, y, x) for the item's bin.
template <typename T, typename Visit>
D2_INLINE void visit_ps_bin(const PsRoiPoolCall<T>& call, const RoiItem<T>& item, int64_t roi,
                            const RoiScratch<T>& scratch, const Visit& visit) {
  const PsRoiBin<T> bin(call.sizes, call.rois, roi, item.bin_group);
  const int64_t pixel = pixel_stride(call), row = call.width * pixel;
  visit(item.bin_group, 0, item.channels, list_pixels(bin.y_begin, bin.y_end, row, scratch.y),
        list_pixels(bin.x_begin, bin.x_end, pixel, scratch.x));
}

template <typename T>
void ps_roi_pool(const PsRoiPoolCall<T>& call, int64_t index, const RoiScratch<T>& scratch) {
  const RoiItem<T> item(call, index);
  pool_item(call, item, scratch,
            [&](int64_t roi, const auto& pool) { visit_ps_bin(call, item, roi, scratch, pool); });
}

// Gradient with respect to the input.
template <typename T>
void ps_roi_pool_backward(const PsRoiPoolCall<T>& call, int64_t index,
                          const RoiScratch<T>& scratch) {
  const RoiItem<T> item(call, index);
  spread_item<false>(call, item, scratch, [&](int64_t roi, const auto& spread) {
    visit_ps_bin(call, item, roi, scratch, spread);
  });
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
