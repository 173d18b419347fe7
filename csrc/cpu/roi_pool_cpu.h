// What the RoI operators have in common on the CPU: layouts, the order of RoIs, threads.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "layout_cpu.h"

namespace d2_deformable {

// Channels-last copies of a slice stay in the L2 cache, but are at least one vector of channels
// wide.
constexpr int64_t kRoiMapBytes = 384 << 10;
constexpr int64_t kRoiVectorBytes = 64;  // the longest vector of all instruction sets

template <typename T>
constexpr int64_t kRoiLanes = kRoiVectorBytes / int64_t(sizeof(T));

// The RoIs image by image, those of one image in the given order.
struct RoiOrder {
  std::vector<int64_t> order, image_begin;

  // Checks that every image index is one of 0 .. images - 1, which NaN and fractions are not.
  template <typename T>
  RoiOrder(const char* op, const T* rois, int64_t count, int64_t images)
      : order(count), image_begin(images + 1, 0) {
    for (int64_t r = 0; r < count; ++r) {
      const T index = rois[r * 5];
      TORCH_CHECK(is_image_index(index, images), op, ": rois[", r, "] names image ", index,
                  ", but input holds ", images, " images");
      ++image_begin[int64_t(index) + 1];
    }
    for (int64_t image = 0; image < images; ++image) image_begin[image + 1] += image_begin[image];
    std::vector<int64_t> next(image_begin.begin(), image_begin.end() - 1);
    for (int64_t r = 0; r < count; ++r) order[next[int64_t(rois[r * 5])]++] = r;
  }
};

template <typename T>
RoiChannelSlices roi_channel_slices(int64_t channels, int64_t class_channels, int64_t pixels,
                                    int64_t maps) {
  const int64_t fit = kRoiMapBytes / (maps * pixels * int64_t(sizeof(T)));
  const int64_t most = std::max<int64_t>(fit / kRoiLanes<T>, 1) * kRoiLanes<T>;
  return RoiChannelSlices(channels, class_channels, most, kRoiLanes<T>);
}

// Whether items can work on a channels-last map itself. They read and add whole vectors, which must
// not reach into another item's channels.
template <typename T>
bool in_place(bool channels_last, int64_t bin_groups, int64_t class_channels) {
  return channels_last && bin_groups == 1 && class_channels % kRoiLanes<T> == 0;
}

// The arguments that both operators have in common.
template <typename T, typename Sizes>
RoiPoolCall<T> roi_pool_call(const Sizes& s, int64_t bin_groups, int64_t class_channels,
                             int64_t most_pixels, bool channels_last, int64_t maps,
                             const RoiOrder& rois) {
  RoiPoolCall<T> call{
      s.images,
      bin_groups,
      s.top_channels,
      s.height,
      s.width,
      s.bins(),
      roi_channel_slices<T>(s.top_channels, class_channels, s.height * s.width, maps),
      rois.order.data(),
      rois.image_begin.data()};
  call.in_place = in_place<T>(channels_last, bin_groups, class_channels);
  // A bin reads about 16 pixels.
  call.by_pages = s.rois * s.bins() / bin_groups * 16 < s.images * s.height * s.width;
  // If there is one bin group, an item has all the bins of a RoI and can transpose them in the
  // cache.
  call.as_rows = channels_last || bin_groups > 1;
  call.slice_stride = RoiChannelSlices::ceil_div(call.slices.size, kRoiLanes<T>) * kRoiLanes<T>;
  call.most_pixels = most_pixels + kRoiLanes<T>;
  return call;
}

template <typename T>
class RoiScratchMemory {
 public:
  // Vectors may reach beyond the last channel of a slice, hence one more vector after each array.
  RoiScratchMemory(const RoiPoolCall<T>& call, bool map, bool grad_map, int64_t x_lists)
      : numbers_((map + grad_map) * map_size(call) + rows_size(call)),
        pixels_(new AxisPixel<T>[call.most_pixels * (1 + x_lists)]),
        x_lists_(new AxisPixels<T>[x_lists]),
        copied_(new bool[call.pixels() / kRoiPage + 1]) {
    scratch.map = numbers_.data();
    scratch.grad_map = scratch.map + map * map_size(call);
    scratch.rows = scratch.grad_map + grad_map * map_size(call);
    scratch.y = pixels_.get();
    scratch.x = scratch.y + call.most_pixels;
    scratch.x_lists = x_lists_.get();
    scratch.copied = copied_.get();
  }
  RoiScratch<T> scratch;

 private:
  static int64_t map_size(const RoiPoolCall<T>& call) {
    return call.in_place ? 0 : call.pixels() * call.slice_stride + kRoiLanes<T>;
  }
  static int64_t rows_size(const RoiPoolCall<T>& call) {
    const int64_t rois = call.image_begin[call.images];
    return call.as_rows || rois == 0 ? 0 : call.bins * call.slice_stride + kRoiLanes<T>;
  }
  Scratch<T> numbers_;
  std::unique_ptr<AxisPixel<T>[]> pixels_;
  std::unique_ptr<AxisPixels<T>[]> x_lists_;
  std::unique_ptr<bool[]> copied_;
};

// Calls kernel(call, item, scratch) for all items. `cost` counts multiply-adds of the whole call.
template <typename T, typename Call, typename Kernel>
void run_items(const Call& call, Kernel kernel, bool map, bool grad_map, int64_t x_lists,
               int64_t cost) {
  const int64_t items = call.items();
  if (items == 0) return;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(cost / items, 1));
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    const RoiScratchMemory<T> memory(call, map, grad_map, x_lists);
    for (int64_t item = begin; item < end; ++item) kernel(call, item, memory.scratch);
  });
}

// from[R][rows][columns] -> to[R][columns][rows], RoI by RoI
template <typename T>
void transpose_rois(const T* from, T* to, int64_t rois, int64_t rows, int64_t columns) {
  const int64_t size = rows * columns;
  at::parallel_for(0, rois, std::max<int64_t>(1, 32768 / std::max<int64_t>(size, 1)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r) {
                       cpu_kernels<T>().transpose(from + r * size, columns, to + r * size, rows,
                                                  rows, columns);
                     }
                   });
}

// Converts results of the kernels, as rows or not, to the given type and memory format.
template <typename T>
at::Tensor finish_output(const at::Tensor& output, bool as_rows, at::ScalarType type,
                         at::MemoryFormat format) {
  if (!as_rows || format == at::MemoryFormat::ChannelsLast) return output.to(type);
  const at::Tensor to = at::empty(output.sizes(), output.options());
  transpose_rois(output.const_data_ptr<T>(), to.mutable_data_ptr<T>(), output.size(0),
                 output.size(2) * output.size(3), output.size(1));
  return to.to(type);
}

// Converts the gradient of the results to the layout and type of the kernels.
template <typename T>
at::Tensor start_gradient(const at::Tensor& grad_output, bool as_rows) {
  const at::Tensor grad = grad_output.to(c10::CppTypeToScalarType<T>::value);
  if (!as_rows) return grad.contiguous();
  if (grad.is_contiguous(at::MemoryFormat::ChannelsLast)) return grad;
  const at::Tensor from = grad.contiguous();
  const at::Tensor rows =
      at::empty(from.sizes(), from.options().memory_format(at::MemoryFormat::ChannelsLast));
  transpose_rois(from.const_data_ptr<T>(), rows.mutable_data_ptr<T>(), from.size(0), from.size(1),
                 from.size(2) * from.size(3));
  return rows;
}

}  // namespace d2_deformable
