// Host code of deform_roi_pool where every channel is a class
// (kernels/deform_roi_planes_cpu_kernel.h).
#pragma once

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <tuple>

#include "roi_pool_cpu.h"

namespace d2_deformable {

// from[rows][from_stride] -> to[columns][to_stride]
template <typename T>
void transpose_parallel(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
                        int64_t columns) {
  const int64_t grain = 1 + 65536 / std::max<int64_t>(rows, 1) / kRoiLanes<T> * kRoiLanes<T>;
  at::parallel_for(0, columns, grain, [&](int64_t begin, int64_t end) {
    cpu_kernels<T>().transpose(from + begin, from_stride, to + begin * to_stride, to_stride, rows,
                               end - begin);
  });
}

template <typename T>
class DeformRoiPlanes {
 public:
  DeformRoiPlanes(const DeformRoiPoolSizes& s, const at::Tensor& boxes, const at::Tensor& offset,
                  const RoiOrder& rois)
      : stride_(RoiChannelSlices::ceil_div(s.rois, kRoiLanes<T>) * kRoiLanes<T> + kRoiLanes<T>) {
    const at::TensorOptions options = boxes.options();
    if (s.images > 1) {
      order_ = at::from_blob(const_cast<int64_t*>(rois.order.data()), {s.rois}, at::kLong).clone();
    }
    boxes_ = at::zeros({8, stride_}, options);
    T* rows = boxes_.mutable_data_ptr<T>();
    for (int64_t k = 0; k < s.rois; ++k) {
      const DeformRoiBins<T> bins(s, boxes.const_data_ptr<T>(), rois.order[k]);
      const T numbers[8] = {bins.box.y,      bins.box.x,     bins.box.height, bins.box.width,
                            bins.bin_height, bins.bin_width, bins.step_y,     bins.step_x};
      for (int64_t i = 0; i < 8; ++i) rows[i * stride_ + k] = numbers[i];
    }
    offset_ = rois_last(offset);
    call.sizes = s;
    call.stride = stride_;
    call.image_begin = rois.image_begin.data();
    const T** const fields[8] = {&call.y,         &call.x,          &call.box_height,
                                 &call.box_width, &call.bin_height, &call.bin_width,
                                 &call.step_y,    &call.step_x};
    for (int64_t i = 0; i < 8; ++i) *fields[i] = rows + i * stride_;
    call.offset = offset_.template const_data_ptr<T>();
  }

  // (R, ...) -> [...][stride], with the RoIs in the order of images
  at::Tensor rois_last(const at::Tensor& from) const {
    const at::Tensor ordered = order_.defined() ? from.index_select(0, order_) : from.contiguous();
    const int64_t count = from.size(0), size = count ? from.numel() / count : 0;
    at::Tensor to = empty_rois_last(size);
    transpose_parallel(ordered.const_data_ptr<T>(), size, to.mutable_data_ptr<T>(), stride_, count,
                       size);
    return to;
  }
  at::Tensor empty_rois_last(int64_t size) const {
    return at::empty({size, stride_}, boxes_.options());
  }
  // The reverse: -> (R, ...) of the given shape.
  at::Tensor rois_first(const at::Tensor& from, at::IntArrayRef shape) const {
    at::Tensor to = at::empty(shape, from.options());
    transpose_parallel(from.const_data_ptr<T>(), stride_, to.mutable_data_ptr<T>(), from.size(0),
                       from.size(0), shape[0]);
    if (!order_.defined()) return to;
    return at::empty(shape, to.options()).index_copy_(0, order_, to);
  }

  void run(void (*kernel)(const DeformRoiPlanesCall<T>&, int64_t, const RoiScratch<T>&)) const {
    const DeformRoiPoolSizes& s = call.sizes;
    const int64_t items = s.images * s.classes * s.bin_groups(), plane = s.height * s.width;
    const int64_t pixels = s.most_pixels() + kRoiLanes<T>;
    const int64_t cost = plane + s.rois * s.bins() * 64 / s.bin_groups();
    at::parallel_for(0, items, 1 + 32768 / cost, [&](int64_t begin, int64_t end) {
      const Scratch<T> maps(2 * (plane + kRoiLanes<T>));
      const std::unique_ptr<AxisPixel<T>[]> lists(new AxisPixel<T>[2 * pixels]);
      const RoiScratch<T> scratch{maps.data(),
                                  maps.data() + plane + kRoiLanes<T>,
                                  nullptr,
                                  lists.get(),
                                  lists.get() + pixels,
                                  nullptr,
                                  nullptr};
      for (int64_t item = begin; item < end; ++item) kernel(call, item, scratch);
    });
  }

  // `call` points into the members.
  DeformRoiPlanes(const DeformRoiPlanes&) = delete;
  DeformRoiPlanes& operator=(const DeformRoiPlanes&) = delete;

  DeformRoiPlanesCall<T> call{};

 private:
  int64_t stride_;    // of a row; has room for a vector that begins at the last RoI
  at::Tensor order_;  // undefined if the RoIs are in order
  at::Tensor boxes_, offset_;
};

}  // namespace d2_deformable
