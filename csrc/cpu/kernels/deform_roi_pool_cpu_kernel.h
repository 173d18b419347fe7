// Deformable RoI pooling of one item (../roi_pool_call.h), for classes whose channels share their
// sampling points.
#pragma once

#include "roi_item.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Calls visit(bin, class, y, x), with the pixels of both axes, for all of a RoI's bins in the bin
// group and all classes from class_begin to class_end - 1. Without an offset, the bins of a row
// share their y axis and the bins of a column their x axis.
template <RoiSampling rule, bool slopes, typename T, typename Visit>
D2_INLINE void for_each_deform_bin(const DeformRoiPoolCall<T>& call, int64_t bin_group, int64_t roi,
                                   int64_t class_begin, int64_t class_end,
                                   const RoiScratch<T>& scratch, const Visit& visit) {
  const DeformRoiPoolSizes& s = call.sizes;
  const DeformRoiBins<T>& bins = call.roi_bins[roi];
  const BinRange bins_y(bin_group / s.group_size, s.group_size, s.bins_h);
  const BinRange bins_x(bin_group % s.group_size, s.group_size, s.bins_w);
  const int64_t pixel = pixel_stride(call), row = s.width * pixel;
  const auto y_axis = [&](T start) __attribute__((always_inline)) {
    return list_axis_pixels<slopes>(BinAxis<T>(bins.sampling_y(s, rule, start), s.height), row,
                                    scratch.y);
  };
  const auto x_axis = [&](T start, int64_t list) __attribute__((always_inline)) {
    return list_axis_pixels<slopes>(BinAxis<T>(bins.sampling_x(s, rule, start), s.width), pixel,
                                    scratch.x + list * call.most_pixels);
  };
  if (!call.offset) {
    for (int64_t bin_y = bins_y.begin; bin_y < bins_y.end; ++bin_y) {
      const AxisPixels<T> y = y_axis(bins.bin_start_y(bin_y));
      for (int64_t bin_x = bins_x.begin; bin_x < bins_x.end; ++bin_x) {
        const int64_t list = call.keep_x_lists ? bin_x - bins_x.begin : 0;
        AxisPixels<T>& x = scratch.x_lists[list];
        if (bin_y == bins_y.begin || !call.keep_x_lists) x = x_axis(bins.bin_start_x(bin_x), list);
        visit(bin_y * s.bins_w + bin_x, 0, y, x);
      }
    }
    return;
  }
  const int64_t parts = s.parts_h * s.parts_w;
  for (int64_t bin_y = bins_y.begin; bin_y < bins_y.end; ++bin_y) {
    const int64_t part_y = bin_y * s.parts_h / s.bins_h;
    for (int64_t bin_x = bins_x.begin; bin_x < bins_x.end; ++bin_x) {
      const int64_t part = part_y * s.parts_w + bin_x * s.parts_w / s.bins_w;
      for (int64_t k = class_begin; k < class_end; ++k) {
        const T* offset = call.offset + (roi * s.classes + k) * 2 * parts + part;
        const AxisPixels<T> y = y_axis(bins.bin_start_y(bin_y) + bins.shift_y(offset[0]));
        const AxisPixels<T> x = x_axis(bins.bin_start_x(bin_x) + bins.shift_x(offset[parts]), 0);
        visit(bin_y * s.bins_w + bin_x, k, y, x);
      }
    }
  }
}

// Calls run(rule) with the call's rule as a compile-time constant.
template <typename T, typename Run>
D2_INLINE void with_rule(const DeformRoiPoolCall<T>& call, const Run& run) {
  if (call.sizes.rule == RoiSampling::kAlign) {
    return run(std::integral_constant<RoiSampling, RoiSampling::kAlign>());
  }
  run(std::integral_constant<RoiSampling, RoiSampling::kPool>());
}

// The classes of the item's channels. Several items may share a class.
template <typename T>
struct DeformRoiClasses {
  int64_t class_channels, begin, end;

  D2_INLINE DeformRoiClasses(const DeformRoiPoolCall<T>& call, const RoiItem<T>& item)
      : class_channels(call.slices.class_channels),
        begin(item.channel / class_channels),
        end((item.channel + item.channels + class_channels - 1) / class_channels) {}
  // The item's channels of class k, counted from the item's first channel.
  D2_INLINE int64_t first(const RoiItem<T>& item, int64_t k) const {
    return k * class_channels > item.channel ? k * class_channels - item.channel : 0;
  }
  D2_INLINE int64_t last(const RoiItem<T>& item, int64_t k) const {
    const int64_t last = (k + 1) * class_channels - item.channel;
    return last < item.channels ? last : item.channels;
  }
};

template <RoiSampling rule, typename T>
D2_INLINE void deform_roi_pool_item(const DeformRoiPoolCall<T>& call, const RoiItem<T>& item,
                                    const RoiScratch<T>& scratch) {
  const DeformRoiClasses<T> classes(call, item);
  pool_item(call, item, scratch, [&](int64_t roi, const auto& pool) {
    for_each_deform_bin<rule, false>(
        call, item.bin_group, roi, classes.begin, classes.end, scratch,
        [&](int64_t bin, int64_t k, const AxisPixels<T>& y, const AxisPixels<T>& x) {
          pool(bin, classes.first(item, k), classes.last(item, k), y, x);
        });
  });
}

// Equation (5) of the paper.
template <typename T>
void deform_roi_pool(const DeformRoiPoolCall<T>& call, int64_t index,
                     const RoiScratch<T>& scratch) {
  const RoiItem<T> item(call, index);
  with_rule(call, [&](auto rule) { deform_roi_pool_item<rule.value>(call, item, scratch); });
}

template <RoiSampling rule, bool with_offset, typename T>
D2_INLINE void deform_roi_pool_backward_item(const DeformRoiPoolCall<T>& call,
                                             const RoiItem<T>& item, const RoiScratch<T>& scratch) {
  const DeformRoiClasses<T> classes(call, item);
  const int64_t slices = call.slices.per_class, slice = item.slice % slices;
  spread_item<with_offset>(call, item, scratch, [&](int64_t roi, const auto& spread) {
    for_each_deform_bin<rule, with_offset>(
        call, item.bin_group, roi, classes.begin, classes.end, scratch,
        [&](int64_t bin, int64_t k, const AxisPixels<T>& y, const AxisPixels<T>& x)
            __attribute__((noinline)) {
              const ShiftGradient<T> grad =
                  spread(bin, classes.first(item, k), classes.last(item, k), y, x);
              if (!with_offset) return;
              const int64_t owner = (roi * call.sizes.classes + k) * slices + slice;
              T* to = call.grad_bin_offset + owner * 2 * call.bins + bin;
              // A RoI of infinite size has no pixel to read: no 0 * infinity.
              const bool empty = y.size == 0 || x.size == 0;
              to[0] = empty ? T(0) : call.roi_bins[roi].shift_y(grad.y);
              to[call.bins] = empty ? T(0) : call.roi_bins[roi].shift_x(grad.x);
            });
  });
}

// Gradients with respect to the input and, if call.grad_bin_offset is set, to the offset of each
// bin.
template <typename T>
void deform_roi_pool_backward(const DeformRoiPoolCall<T>& call, int64_t index,
                              const RoiScratch<T>& scratch) {
  const RoiItem<T> item(call, index);
  with_rule(call, [&](auto rule) {
    if (call.grad_bin_offset) {
      deform_roi_pool_backward_item<rule.value, true>(call, item, scratch);
    } else {
      deform_roi_pool_backward_item<rule.value, false>(call, item, scratch);
    }
  });
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
