// Deformable RoI pooling where each channel is a class with its own offsets (the scores of a
// deformable R-FCN). Channels share nothing, and sampling the bins' axes is most of the work. While
// axes are sampled, the lanes of a vector are RoIs. After that they are neighbouring pixels in a
// row of one plane, which stays in the L1 cache.
#pragma once

#include "../roi_pool_call.h"
#include "plane_axis.h"
#include "roi_bin.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Bin `bin` of kLanes<T> RoIs from `roi` on, for one class.
template <bool slopes, typename T>
struct PlaneBins {
  static constexpr int lanes = kLanes<T>;
  using Axis = PlaneAxis<slopes, T>;
  Vector<T> start_y, start_x, step_y, step_x;
  Axis y, x;
  Vector<T> count;
  Vector<T> weight_x[lanes], slope_x[lanes];  // of each bin's window

  D2_INLINE PlaneBins(const DeformRoiPlanesCall<T>& call, int64_t roi, int64_t class_index,
                      int64_t bin)
      : start_y(start(call, call.y, call.bin_height, call.box_height, roi, class_index, 0, bin)),
        start_x(start(call, call.x, call.bin_width, call.box_width, roi, class_index, 1, bin)),
        step_y(load(call.step_y + roi)),
        step_x(load(call.step_x + roi)),
        y(start_y, step_y, call.sizes.samples, call.sizes.height),
        x(start_x, step_x, call.sizes.samples, call.sizes.width) {
    count = y.count * x.count;
    for (int j = 0; j < lanes; ++j) weight_x[j] = x.weight[j];
    transpose_square<T>(weight_x);
    if (!slopes) return;
    for (int j = 0; j < lanes; ++j) slope_x[j] = x.slope[slopes ? j : 0];
    transpose_square<T>(slope_x);
  }

  D2_INLINE bool empty(int lane) const { return !(count[lane] > T(0)); }
  D2_INLINE bool fits(int lane) const { return y.size[lane] <= lanes && x.size[lane] <= lanes; }

  // Calls visit(offset of the first pixel, weight_y, slope_y) for each row of the window.
  template <typename Visit>
  D2_INLINE void for_each_row(int lane, int64_t width, const Visit& visit) const {
    int64_t row = y.begin[lane] * width + x.begin[lane];
    for (int j = 0; j < y.size[lane]; ++j, row += width) {
      const T weight = y.weight[j][lane];
      if (weight != T(0)) visit(row, weight, slopes ? y.slope[slopes ? j : 0][lane] : T(0));
    }
  }
  // For a bin that does not fit into its window: calls visit(offset, y, x) for each pixel.
  template <typename Visit>
  D2_INLINE void for_each_pixel(const DeformRoiPlanesCall<T>& call, const RoiScratch<T>& scratch,
                                int lane, const Visit& visit) const {
    const DeformRoiPoolSizes& s = call.sizes;
    const auto sampling = [&](T start, T step) {
      return BinSampling<T>{start, step, int32_t(s.samples), s.rule, T(0)};
    };
    const AxisPixels<T> rows = list_axis_pixels<slopes>(
        BinAxis<T>(sampling(start_y[lane], step_y[lane]), s.height), s.width, scratch.y);
    const AxisPixels<T> columns = list_axis_pixels<slopes>(
        BinAxis<T>(sampling(start_x[lane], step_x[lane]), s.width), 1, scratch.x);
    for (int64_t i = 0; i < rows.size; ++i) {
      for (int64_t j = 0; j < columns.size; ++j) {
        visit(rows.pixels[i].offset + columns.pixels[j].offset, rows.pixels[i], columns.pixels[j]);
      }
    }
  }

 private:
  D2_INLINE static Vector<T> start(const DeformRoiPlanesCall<T>& call, const T* box, const T* side,
                                   const T* box_side, int64_t roi, int64_t class_index,
                                   int64_t axis, int64_t bin) {
    const DeformRoiPoolSizes& s = call.sizes;
    const int64_t bin_y = bin / s.bins_w, bin_x = bin % s.bins_w;
    const int64_t part = bin_y * s.parts_h / s.bins_h * s.parts_w + bin_x * s.parts_w / s.bins_w;
    const int64_t row = (class_index * 2 + axis) * s.parts_h * s.parts_w + part;
    const Vector<T> offset = load(call.offset + row * call.stride + roi);
    return T(axis == 0 ? bin_y : bin_x) * load(side + roi) + load(box + roi) +
           offset * T(s.gamma) * load(box_side + roi);
  }
};

// Lane i of the result is the sum of vector i.
template <typename T>
D2_INLINE Vector<T> sum_each(Vector<T> (&vectors)[kLanes<T>]) {
  transpose_square<T>(vectors);
  Vector<T> sums{};
  for (const Vector<T>& vector : vectors) sums += vector;
  return sums;
}

// Copies a plane and adds zeros, so that the window of the last pixel may be read.
template <typename T>
D2_INLINE void copy_plane(const T* from, int64_t pixels, T* to) {
  for (int64_t k = 0; k < pixels; ++k) to[k] = from[k];
  for (int64_t k = 0; k < kLanes<T>; ++k) to[pixels + k] = T(0);
}

// Calls visit(class, bin, first RoI, number of RoIs) for all bins of the item's plane. An item is
// an (image, class, bin group), and RoIs are in the order of images.
template <typename T, typename Visit>
D2_INLINE void for_each_plane_bin(const DeformRoiPlanesCall<T>& call, int64_t item,
                                  const Visit& visit) {
  const DeformRoiPoolSizes& s = call.sizes;
  const int64_t bin_group = item % s.bin_groups(), class_index = item / s.bin_groups() % s.classes;
  const int64_t image = item / s.bin_groups() / s.classes;
  const BinRange bins_y(bin_group / s.group_size, s.group_size, s.bins_h);
  const BinRange bins_x(bin_group % s.group_size, s.group_size, s.bins_w);
  const int64_t end = call.image_begin[image + 1];
  for (int64_t bin_y = bins_y.begin; bin_y < bins_y.end; ++bin_y) {
    for (int64_t bin_x = bins_x.begin; bin_x < bins_x.end; ++bin_x) {
      for (int64_t roi = call.image_begin[image]; roi < end; roi += kLanes<T>) {
        const int64_t rest = end - roi;
        visit(class_index, bin_y * s.bins_w + bin_x, roi, rest < kLanes<T> ? rest : kLanes<T>);
      }
    }
  }
}

// output[class][bin][roi]: an item writes the bins of its bin group for all RoIs of its image.
template <typename T>
void deform_roi_planes(const DeformRoiPlanesCall<T>& call, int64_t item,
                       const RoiScratch<T>& scratch) {
  const DeformRoiPoolSizes& s = call.sizes;
  const int64_t pixels = s.height * s.width;
  copy_plane(call.input + item * pixels, pixels, scratch.map);
  for_each_plane_bin(call, item, [&](int64_t class_index, int64_t bin, int64_t roi, int64_t rois) {
    const PlaneBins<false, T> bins(call, roi, class_index, bin);
    Vector<T> sums[kLanes<T>] = {};
    for (int lane = 0; lane < rois; ++lane) {
      if (bins.empty(lane)) continue;
      if (bins.fits(lane)) {
        const Vector<T> weight = bins.weight_x[lane];
        bins.for_each_row(lane, s.width, [&](int64_t row, T weight_y, T) {
          sums[lane] += weight_y * (weight != Vector<T>{} ? load(scratch.map + row) : Vector<T>{});
        });
        sums[lane] *= weight;
      } else {
        T sum = 0;
        bins.for_each_pixel(call, scratch, lane,
                            [&](int64_t at, const AxisPixel<T>& y, const AxisPixel<T>& x) {
                              sum += y.weight * x.weight * scratch.map[at];
                            });
        sums[lane][0] = sum;
      }
    }
    const Vector<T> total = sum_each<T>(sums);
    const Vector<T> mean = total / (bins.count > Vector<T>{} ? bins.count : Vector<T>{} + T(1));
    store_first<T>(call.output + (class_index * s.bins() + bin) * call.stride + roi, mean, rois);
  });
}

// Gradients with respect to an item's plane and to the offset of each of its bins,
// grad_bin_offset[class][y, x][bin][roi]. The item alone adds to its plane, in the order of bins
// and RoIs.
template <typename T>
void deform_roi_planes_backward(const DeformRoiPlanesCall<T>& call, int64_t item,
                                const RoiScratch<T>& scratch) {
  const DeformRoiPoolSizes& s = call.sizes;
  const int64_t pixels = s.height * s.width;
  copy_plane(call.input + item * pixels, pixels, scratch.map);
  for (int64_t k = 0; k < pixels + kLanes<T>; ++k) scratch.grad_map[k] = T(0);
  for_each_plane_bin(call, item, [&](int64_t class_index, int64_t bin, int64_t roi, int64_t rois) {
    const PlaneBins<true, T> bins(call, roi, class_index, bin);
    const T* grad = call.grad_output + (class_index * s.bins() + bin) * call.stride + roi;
    Vector<T> by_y[kLanes<T>] = {}, by_x[kLanes<T>] = {};
    for (int lane = 0; lane < rois; ++lane) {
      if (bins.empty(lane) || grad[lane] == T(0)) continue;
      const T g = grad[lane] / bins.count[lane];
      if (bins.fits(lane)) {
        const Vector<T> zero{}, weight = bins.weight_x[lane];
        const Vector<T> spread = weight != zero ? g * weight : zero;
        Vector<T> value{}, slope{};
        bins.for_each_row(lane, s.width, [&](int64_t row, T weight_y, T slope_y) {
          T* to = scratch.grad_map + row;
          store(to, load(to) + weight_y * spread);
          const Vector<T> read = weight != zero ? load(scratch.map + row) : zero;
          value += weight_y * read;
          slope += slope_y * read;
        });
        by_y[lane] = g * slope * weight;
        by_x[lane] = g * value * bins.slope_x[lane];
      } else {
        T sum_y = 0, sum_x = 0;
        bins.for_each_pixel(call, scratch, lane,
                            [&](int64_t at, const AxisPixel<T>& y, const AxisPixel<T>& x) {
                              scratch.grad_map[at] += g * y.weight * x.weight;
                              sum_y += y.slope * x.weight * scratch.map[at];
                              sum_x += y.weight * x.slope * scratch.map[at];
                            });
        by_y[lane][0] = g * sum_y;
        by_x[lane][0] = g * sum_x;
      }
    }
    const auto write = [&](int64_t axis, Vector<T> sums, const T* box_side) {
      const int64_t row = (class_index * 2 + axis) * s.bins() + bin;
      const Vector<T> grad_offset = sums * T(s.gamma) * load(box_side + roi);
      store_first<T>(call.grad_bin_offset + row * call.stride + roi,
                     bins.count > Vector<T>{} ? grad_offset : Vector<T>{}, rois);
    };
    write(0, sum_each<T>(by_y), call.box_height);
    write(1, sum_each<T>(by_x), call.box_width);
  });
  for (int64_t k = 0; k < pixels; ++k) call.grad_input[item * pixels + k] = scratch.grad_map[k];
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
