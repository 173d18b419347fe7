// deform_roi_pool and deform_roi_align on the CPU: convert layouts, allocate, and run the items of
// work (roi_pool_call.h).
#include "../deform_roi_align_sizes.h"
#include "../deform_roi_pool_sizes.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "deform_roi_planes_cpu.h"
#include "roi_pool_cpu.h"

namespace d2_deformable {
namespace {

// The most pixels of a row of bins that are kept for the next rows.
constexpr int64_t kMostKept = 1 << 16;

// The kernels' arguments that forward and backward share. T is the type of sums.
template <typename T>
struct Call : DeformRoiPoolCall<T> {
  at::Tensor boxes, offsets;
  RoiOrder rois;
  std::vector<DeformRoiBins<T>> all_roi_bins;

  Call(const char* op, const DeformRoiPoolSizes& s, const at::Tensor& roi_boxes,
       const std::optional<at::Tensor>& offset, bool channels_last, int64_t maps)
      : DeformRoiPoolCall<T>{},
        boxes(to_coordinates(roi_boxes, c10::CppTypeToScalarType<T>::value)),
        offsets(to_coordinates(offset, c10::CppTypeToScalarType<T>::value)),
        rois(op, boxes.const_data_ptr<T>(), s.rois, s.images) {
    static_cast<RoiPoolCall<T>&>(*this) = roi_pool_call<T>(
        s, s.bin_groups(), s.class_channels(), s.most_pixels(), channels_last, maps, rois);
    all_roi_bins.reserve(s.rois);
    for (int64_t r = 0; r < s.rois; ++r) all_roi_bins.emplace_back(s, boxes.const_data_ptr<T>(), r);
    this->sizes = s;
    this->roi_bins = all_roi_bins.data();
    this->offset = data_or_null<T>(offsets);
    this->keep_x_lists = !offset && s.bins_w * this->most_pixels <= kMostKept;
  }
  at::Tensor map(const at::Tensor& input) const {
    return input.to(c10::CppTypeToScalarType<T>::value).contiguous(memory_format(this->in_place));
  }
  void run(void (*kernel)(const DeformRoiPoolCall<T>&, int64_t, const RoiScratch<T>&), bool map,
           bool grad_map) const {
    const auto& s = this->sizes;
    const int64_t bins = s.rois * s.bins() * s.classes;
    run_items<T>(static_cast<const DeformRoiPoolCall<T>&>(*this), kernel, map, grad_map,
                 this->keep_x_lists ? s.bins_w : 1, bins * 4 * (16 + 4 * s.class_channels()));
  }
};

// Whether no two channels share offsets: planes are then pooled one by one.
bool by_planes(const DeformRoiPoolSizes& s, const std::optional<at::Tensor>& offset) {
  return offset && s.class_channels() == 1 && s.rule == RoiSampling::kPool;
}

template <typename T>
at::Tensor planes_forward(const char* op, const DeformRoiPoolSizes& s, const at::Tensor& input,
                          const at::Tensor& roi_boxes, const at::Tensor& offset) {
  const at::ScalarType type = c10::CppTypeToScalarType<T>::value;
  const at::Tensor boxes = to_coordinates(roi_boxes, type);
  const RoiOrder rois(op, boxes.const_data_ptr<T>(), s.rois, s.images);
  DeformRoiPlanes<T> planes(s, boxes, offset.to(type), rois);
  const at::Tensor map = input.to(type).contiguous();
  const at::Tensor output = planes.empty_rois_last(s.classes * s.bins());
  planes.call.input = map.const_data_ptr<T>();
  planes.call.output = output.mutable_data_ptr<T>();
  planes.run(cpu_kernels<T>().deform_roi_planes);
  return planes.rois_first(output, {s.rois, s.top_channels, s.bins_h, s.bins_w});
}

// Gradients with respect to the input and to the offset of each bin.
template <typename T>
std::tuple<at::Tensor, at::Tensor> planes_backward(const char* op, const DeformRoiPoolSizes& s,
                                                   const at::Tensor& grad_output,
                                                   const at::Tensor& input,
                                                   const at::Tensor& roi_boxes,
                                                   const at::Tensor& offset) {
  const at::ScalarType type = c10::CppTypeToScalarType<T>::value;
  const at::Tensor boxes = to_coordinates(roi_boxes, type);
  const RoiOrder rois(op, boxes.const_data_ptr<T>(), s.rois, s.images);
  DeformRoiPlanes<T> planes(s, boxes, offset.to(type), rois);
  const at::Tensor map = input.to(type).contiguous();
  const at::Tensor grad = planes.rois_last(grad_output.to(type).contiguous());
  const at::Tensor grad_map = at::empty(input.sizes(), map.options());
  const at::Tensor grad_bin_offset = planes.empty_rois_last(s.classes * 2 * s.bins());
  planes.call.input = map.const_data_ptr<T>();
  planes.call.grad_output = grad.const_data_ptr<T>();
  planes.call.grad_input = grad_map.mutable_data_ptr<T>();
  planes.call.grad_bin_offset = grad_bin_offset.mutable_data_ptr<T>();
  planes.run(cpu_kernels<T>().deform_roi_planes_backward);
  return {grad_map,
          planes.rois_first(grad_bin_offset, {s.rois, s.classes, 1, 2, s.bins_h, s.bins_w})};
}

at::Tensor forward(const char* name, const DeformRoiPoolSizes& s, const at::Tensor& input,
                   const at::Tensor& rois, const std::optional<at::Tensor>& offset) {
  const at::MemoryFormat format = memory_format(input);
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), "deform_roi", [&] {
    using T = scalar_t;
    if (by_planes(s, offset)) {
      result = planes_forward<T>(name, s, input, rois, *offset)
                   .to(input.scalar_type(), false, false, format);
      return;
    }
    Call<T> call(name, s, rois, offset, format == at::MemoryFormat::ChannelsLast, 1);
    const at::Tensor map = call.map(input);
    const at::Tensor output = at::empty({s.rois, s.top_channels, s.bins_h, s.bins_w},
                                        map.options().memory_format(memory_format(call.as_rows)));
    call.input = map.const_data_ptr<T>();
    call.output = output.mutable_data_ptr<T>();
    call.run(cpu_kernels<T>().deform_roi_pool, true, false);
    result = finish_output<T>(output, call.as_rows, input.scalar_type(), format);
  });
  return result;
}

// Sums the gradient of the offset over the slices of a class and the bins of a part, in a fixed
// order: (R, classes, slices, 2, bins_h, bins_w) -> (R, 2*classes, part_h, part_w).
template <typename T>
at::Tensor sum_bin_offsets(const DeformRoiPoolSizes& s, const at::Tensor& grad) {
  const int64_t slices = grad.size(2), bins = s.bins(), parts = s.parts_h * s.parts_w;
  const std::array<int64_t, 4> shape = {s.rois, 2 * s.classes, s.parts_h, s.parts_w};
  if (slices == 1 && s.parts_h == s.bins_h && s.parts_w == s.bins_w) return grad.view(shape);
  const at::Tensor sums = at::zeros(shape, grad.options());
  const T* from = grad.const_data_ptr<T>();
  T* to = sums.mutable_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, 32768 / (2 * slices * (bins + parts)));
  at::parallel_for(0, s.rois * s.classes, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 2 * slices; i < end * 2 * slices; ++i) {
      T* part = to + (i / 2 / slices * 2 + i % 2) * parts;
      for (int64_t y = 0; y < s.bins_h; ++y) {
        T* row = part + y * s.parts_h / s.bins_h * s.parts_w;
        for (int64_t x = 0; x < s.bins_w; ++x) {
          row[x * s.parts_w / s.bins_w] += from[i * bins + y * s.bins_w + x];
        }
      }
    }
  });
  return sums;
}

// Gradients with respect to the input and, with an offset, to the offset of each bin. Works on
// slices of channels that share offsets.
template <typename T>
std::tuple<at::Tensor, at::Tensor> channels_backward(const char* op, const DeformRoiPoolSizes& s,
                                                     const at::Tensor& grad_output,
                                                     const at::Tensor& input,
                                                     const at::Tensor& rois,
                                                     const std::optional<at::Tensor>& offset) {
  const bool channels_last = memory_format(input) == at::MemoryFormat::ChannelsLast;
  Call<T> call(op, s, rois, offset, channels_last, offset ? 2 : 1);
  const at::Tensor grad = start_gradient<T>(grad_output, call.as_rows);
  const at::TensorOptions options = grad.options();
  const at::Tensor grad_map =
      at::empty(input.sizes(), options.memory_format(memory_format(call.in_place)));
  call.grad_output = grad.const_data_ptr<T>();
  call.grad_input = grad_map.mutable_data_ptr<T>();
  at::Tensor map, grad_bin_offset;
  if (offset) {
    map = call.map(input);
    grad_bin_offset =
        at::empty({s.rois, s.classes, call.slices.per_class, 2, s.bins_h, s.bins_w}, options);
    call.input = map.const_data_ptr<T>();
    call.grad_bin_offset = grad_bin_offset.mutable_data_ptr<T>();
  }
  call.run(cpu_kernels<T>().deform_roi_pool_backward, offset.has_value(), true);
  return {grad_map, grad_bin_offset};
}

std::tuple<at::Tensor, at::Tensor> backward(const char* name, const DeformRoiPoolSizes& s,
                                            const at::Tensor& grad_output, const at::Tensor& input,
                                            const at::Tensor& rois,
                                            const std::optional<at::Tensor>& offset) {
  const at::MemoryFormat format = memory_format(input);
  at::Tensor grad_input, grad_offset;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), "deform_roi", [&] {
    using T = scalar_t;
    at::Tensor grad_map, grad_bin_offset;
    if (by_planes(s, offset)) {
      std::tie(grad_map, grad_bin_offset) =
          planes_backward<T>(name, s, grad_output, input, rois, *offset);
    } else {
      std::tie(grad_map, grad_bin_offset) =
          channels_backward<T>(name, s, grad_output, input, rois, offset);
    }
    grad_input = grad_map.to(input.scalar_type(), false, false, format);
    grad_offset = offset ? sum_bin_offsets<T>(s, grad_bin_offset).to(offset->scalar_type())
                         : at::empty({0}, input.options());
  });
  return {grad_input, grad_offset};
}

at::Tensor deform_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                               const std::optional<at::Tensor>& offset, at::IntArrayRef output_size,
                               double spatial_scale, int64_t group_size, int64_t samples_per_part,
                               double gamma, bool round_rois) {
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  return forward("deform_roi_pool", s, input, rois, offset);
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t group_size, int64_t samples_per_part, double gamma, bool round_rois) {
  const auto s =
      deform_roi_pool_backward_sizes(grad_output, input, rois, offset, output_size, spatial_scale,
                                     group_size, samples_per_part, gamma, round_rois);
  return backward("deform_roi_pool_backward", s, grad_output, input, rois, offset);
}

at::Tensor deform_roi_align_cpu(const at::Tensor& input, const at::Tensor& rois,
                                const std::optional<at::Tensor>& offset,
                                at::IntArrayRef output_size, double spatial_scale,
                                int64_t sampling_ratio, double gamma) {
  const auto s = deform_roi_align_sizes(input, rois, offset, output_size, spatial_scale,
                                        sampling_ratio, gamma);
  return forward("deform_roi_align", s, input, rois, offset);
}

std::tuple<at::Tensor, at::Tensor> deform_roi_align_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t sampling_ratio, double gamma) {
  const auto s = deform_roi_align_backward_sizes(grad_output, input, rois, offset, output_size,
                                                 spatial_scale, sampling_ratio, gamma);
  return backward("deform_roi_align_backward", s, grad_output, input, rois, offset);
}

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_roi_pool", TORCH_FN(deform_roi_pool_cpu));
  m.impl("deform_roi_pool_backward", TORCH_FN(deform_roi_pool_backward_cpu));
  m.impl("deform_roi_align", TORCH_FN(deform_roi_align_cpu));
  m.impl("deform_roi_align_backward", TORCH_FN(deform_roi_align_backward_cpu));
}

}  // namespace
}  // namespace d2_deformable
