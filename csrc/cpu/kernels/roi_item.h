// The loop of the RoI operators over the work of one item (../roi_pool_call.h): RoI by RoI, all
// bins of the item's bin group.
#pragma once

#include "roi_bin.h"
#include "roi_map.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Stands in for an ItemMap where backward does not read the map.
template <typename T>
struct NoMap {
  const T* data;
  D2_INLINE NoMap(const RoiPoolCall<T>&, const RoiItem<T>&, const RoiScratch<T>& scratch)
      : data(scratch.map) {}
  D2_INLINE void want(const AxisPixels<T>&, const AxisPixels<T>&) const {}
};

constexpr int64_t kLineBytes = 64;  // of the cache

// Forward. for_each_bin(roi, pool) calls pool(bin, first channel, last channel + 1, y, x). Channels
// count from the item's first one.
template <typename T, typename ForEachBin>
D2_INLINE void pool_item(const RoiPoolCall<T>& call, const RoiItem<T>& item,
                         const RoiScratch<T>& scratch, const ForEachBin& for_each_bin) {
  const int64_t begin = call.image_begin[item.image], end = call.image_begin[item.image + 1];
  if (begin == end) return;
  const ItemMap<T> map(call, item, scratch);
  const int64_t stride = call.as_rows ? call.top_channels : call.slice_stride;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t roi = call.order[k];
    T* to = call.output + item.result(call, roi);
    T* rows = call.as_rows ? to : scratch.rows;
    for_each_bin(roi, [&](int64_t bin, int64_t first, int64_t last, const AxisPixels<T>& y,
                          const AxisPixels<T>& x) {
      map.want(y, x);
      if (!call.as_rows) {
        // Prefetches the output, which the transposition writes, while bins are summed.
        for (int64_t c = first; c < last; c += kLineBytes / int64_t(sizeof(T))) {
          __builtin_prefetch(to + bin * item.channels + c, 1);
        }
      }
      pool_bin(map.data + first, y, x, last - first, rows + bin * stride + first);
    });
    if (!call.as_rows) transpose(rows, stride, to, call.bins, call.bins, item.channels);
  }
}

// Backward. for_each_bin(roi, spread) calls spread(...) with the arguments of pool. With a map,
// spread returns the gradient with respect to a shift of the bin.
template <bool with_map, typename T, typename ForEachBin>
D2_INLINE void spread_item(const RoiPoolCall<T>& call, const RoiItem<T>& item,
                           const RoiScratch<T>& scratch, const ForEachBin& for_each_bin) {
  const int64_t begin = call.image_begin[item.image], end = call.image_begin[item.image + 1];
  if (begin == end) return write_zero_gradient(call, item);
  std::conditional_t<with_map, ItemMap<T>, NoMap<T>> map(call, item, scratch);
  T* grad_map = zero_gradient_map(call, item, scratch.grad_map);
  const int64_t stride = call.as_rows ? call.top_channels : call.slice_stride;
  for (int64_t k = begin; k < end; ++k) {
    const int64_t roi = call.order[k];
    const T* from = call.grad_output + item.result(call, roi);
    if (!call.as_rows) {
      transpose(from, call.bins, scratch.rows, stride, item.channels, call.bins);
    }
    const T* rows = call.as_rows ? from : scratch.rows;
    for_each_bin(roi, [&](int64_t bin, int64_t first, int64_t last, const AxisPixels<T>& y,
                          const AxisPixels<T>& x) {
      map.want(y, x);
      return spread_bin<with_map>(rows + bin * stride + first, map.data + first, y, x, last - first,
                                  grad_map + first);
    });
  }
  write_gradient_map(call, item, grad_map);
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
