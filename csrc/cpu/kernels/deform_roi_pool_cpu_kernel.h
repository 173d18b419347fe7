// Deformable RoI pooling of one item (cpu/roi_pool_call.h): channels that share their sampling
// points.
#pragma once

#include "roi_item.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Calls visit(bin, class, y, x), with the taps of both axes, for all bins of a RoI that belong to
// the group, and all classes from class_begin to class_end - 1. Bins that no offset moves share
// their axes by rows and columns.
template <bool slopes, typename T, typename Visit>
D2_INLINE void for_each_deform_bin(const DeformRoiPoolCall<T>& call, int64_t group, int64_t roi,
                                   int64_t class_begin, int64_t class_end,
                                   const RoiScratch<T>& scratch, const Visit& visit) {
  const DeformRoiPoolSizes& s = call.sizes;
  const DeformRoiGrid<T>& grid = call.grids[roi];
  const BinRange bins_y(group / s.group_size, s.group_size, s.bins_h);
  const BinRange bins_x(group % s.group_size, s.group_size, s.bins_w);
  const int64_t pixel = pixel_stride(call), row = s.width * pixel;
  const auto y_axis = [&](T start) {
    return list_taps<slopes>(BinAxis<T>(start, grid.step_y, s.samples, s.height), row, scratch.y);
  };
  const auto x_axis = [&](T start, int64_t column) {
    return list_taps<slopes>(BinAxis<T>(start, grid.step_x, s.samples, s.width), pixel,
                             scratch.x + column * call.most_taps);
  };
  if (!call.offset) {
    for (int64_t bin_y = bins_y.begin; bin_y < bins_y.end; ++bin_y) {
      const RoiTaps<T> y = y_axis(grid.bin_start_y(bin_y));
      for (int64_t bin_x = bins_x.begin; bin_x < bins_x.end; ++bin_x) {
        RoiTaps<T>& x = scratch.columns[bin_x - bins_x.begin];
        if (bin_y == bins_y.begin) x = x_axis(grid.bin_start_x(bin_x), bin_x - bins_x.begin);
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
        const T* shift = call.offset + (roi * s.classes + k) * 2 * parts + part;
        const RoiTaps<T> y = y_axis(grid.bin_start_y(bin_y) + grid.shift_y(shift[0]));
        const RoiTaps<T> x = x_axis(grid.bin_start_x(bin_x) + grid.shift_x(shift[parts]), 0);
        visit(bin_y * s.bins_w + bin_x, k, y, x);
      }
    }
  }
}

// The item's classes; of a class that several items share, its part.
template <typename T>
struct DeformRoiClasses {
  int64_t unit, begin, end;

  D2_INLINE DeformRoiClasses(const DeformRoiPoolCall<T>& call, const RoiItem<T>& item)
      : unit(call.blocks.unit),
        begin(item.channel / unit),
        end((item.channel + item.channels + unit - 1) / unit) {}
  // Channels of class k, counted from the item's first one.
  D2_INLINE int64_t first(const RoiItem<T>& item, int64_t k) const {
    return k * unit > item.channel ? k * unit - item.channel : 0;
  }
  D2_INLINE int64_t last(const RoiItem<T>& item, int64_t k) const {
    const int64_t last = (k + 1) * unit - item.channel;
    return last < item.channels ? last : item.channels;
  }
};

// Equation (5) of the paper.
template <typename T>
void deform_roi_pool(const DeformRoiPoolCall<T>& call, int64_t index,
                     const RoiScratch<T>& scratch) {
  const RoiItem<T> item(call, index);
  const DeformRoiClasses<T> classes(call, item);
  pool_item(call, item, scratch, [&](int64_t roi, const auto& pool) {
    for_each_deform_bin<false>(
        call, item.group, roi, classes.begin, classes.end, scratch,
        [&](int64_t bin, int64_t k, const RoiTaps<T>& y, const RoiTaps<T>& x) {
          pool(bin, classes.first(item, k), classes.last(item, k), y, x);
        });
  });
}

template <bool with_shift, typename T>
D2_INLINE void deform_roi_pool_backward_item(const DeformRoiPoolCall<T>& call,
                                             const RoiItem<T>& item, const RoiScratch<T>& scratch) {
  const DeformRoiClasses<T> classes(call, item);
  const int64_t parts = call.blocks.per_unit, part = item.block % parts;
  spread_item<with_shift>(call, item, scratch, [&](int64_t roi, const auto& spread) {
    for_each_deform_bin<with_shift>(
        call, item.group, roi, classes.begin, classes.end, scratch,
        [&](int64_t bin, int64_t k, const RoiTaps<T>& y, const RoiTaps<T>& x) {
          const RoiShift<T> shift =
              spread(bin, classes.first(item, k), classes.last(item, k), y, x);
          if (!with_shift) return;
          const int64_t owner = (roi * call.sizes.classes + k) * parts + part;
          T* to = call.grad_shift + owner * 2 * call.bins + bin;
          const bool empty = y.size == 0 || x.size == 0;  // beside a RoI of infinite size
          to[0] = empty ? T(0) : call.grids[roi].shift_y(shift.y);
          to[call.bins] = empty ? T(0) : call.grids[roi].shift_x(shift.x);
        });
  });
}

// Gradients of the input and of the bins' shifts. The offset has one that is wanted if there is
// one.
template <typename T>
void deform_roi_pool_backward(const DeformRoiPoolCall<T>& call, int64_t index,
                              const RoiScratch<T>& scratch) {
  const RoiItem<T> item(call, index);
  if (call.grad_shift) return deform_roi_pool_backward_item<true>(call, item, scratch);
  deform_roi_pool_backward_item<false>(call, item, scratch);
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
