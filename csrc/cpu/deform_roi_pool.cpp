// deform_roi_pool on the CPU: tensors, and items of work for the kernels (cpu/roi_pool.h).
#include "../deform_roi_pool.h"

#include <torch/library.h>

#include <optional>
#include <tuple>

#include "roi_host.h"

namespace d2_deformable {
namespace {

// What both passes need to know of a call, in the type T of its sums.
template <typename T>
struct Call : DeformRoiPoolCall<T> {
  at::Tensor boxes, shifts;
  RoiOrder rois;
  std::vector<DeformRoiGrid<T>> all_grids;

  Call(const char* op, const DeformRoiPoolSizes& s, const at::Tensor& roi_boxes,
       const std::optional<at::Tensor>& offset, bool channels_last, int64_t maps)
      : DeformRoiPoolCall<T>{},
        boxes(to_coordinates(roi_boxes, c10::CppTypeToScalarType<T>::value)),
        shifts(to_coordinates(offset, c10::CppTypeToScalarType<T>::value)),
        rois(op, boxes.const_data_ptr<T>(), s.rois, s.images) {
    const int64_t taps = std::min(2 * s.samples, std::max(s.height, s.width));
    static_cast<RoiPoolCall<T>&>(*this) =
        roi_pool_call<T>(s, s.groups(), s.class_channels(), taps, channels_last, maps, rois);
    all_grids.reserve(s.rois);
    for (int64_t r = 0; r < s.rois; ++r) all_grids.emplace_back(s, boxes.const_data_ptr<T>(), r);
    this->sizes = s;
    this->grids = all_grids.data();
    this->offset = data_or_null<T>(shifts);
  }
  at::Tensor map(const at::Tensor& input) const {
    return input.to(c10::CppTypeToScalarType<T>::value).contiguous(memory_format(this->in_place));
  }
  void run(void (*kernel)(const DeformRoiPoolCall<T>&, int64_t, const RoiScratch<T>&), bool map,
           bool grad_map) const {
    const auto& s = this->sizes;
    const int64_t bins = s.rois * s.bins() * s.classes;
    run_items<T>(static_cast<const DeformRoiPoolCall<T>&>(*this), kernel, map, grad_map, s.bins_w,
                 bins * 4 * (16 + 4 * s.class_channels()));
  }
};

at::Tensor deform_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                               const std::optional<at::Tensor>& offset, at::IntArrayRef output_size,
                               double spatial_scale, int64_t group_size, int64_t samples_per_part,
                               double gamma, bool round_rois) {
  constexpr const char* name = "deform_roi_pool";
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  const at::MemoryFormat format = memory_format(input);
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), name, [&] {
    using T = scalar_t;
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

// Sums what the blocks of a class and the bins of a part give to the gradient of the offset:
// from[R*classes][blocks][y, x][bins] -> to[R*classes][y, x][parts]. In a fixed order.
template <typename T>
void sum_shifts(const DeformRoiPoolSizes& s, int64_t blocks, const T* from, T* to) {
  const int64_t bins = s.bins(), parts = s.parts_h * s.parts_w;
  const int64_t grain = std::max<int64_t>(1, 32768 / (2 * blocks * (bins + parts)));
  at::parallel_for(0, s.rois * s.classes, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 2; i < end * 2; ++i) {
      T* sums = to + i * parts;
      std::fill(sums, sums + parts, T(0));
      for (int64_t block = 0; block < blocks; ++block) {
        const T* shifts = from + ((i / 2 * blocks + block) * 2 + i % 2) * bins;
        for (int64_t y = 0; y < s.bins_h; ++y) {
          T* row = sums + y * s.parts_h / s.bins_h * s.parts_w;
          for (int64_t x = 0; x < s.bins_w; ++x) {
            row[x * s.parts_w / s.bins_w] += shifts[y * s.bins_w + x];
          }
        }
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t group_size, int64_t samples_per_part, double gamma, bool round_rois) {
  constexpr const char* name = "deform_roi_pool_backward";
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  check_like(name, "grad_output", grad_output, input);
  check_shape(name, "grad_output", grad_output, {s.rois, s.top_channels, s.bins_h, s.bins_w});
  const at::MemoryFormat format = memory_format(input);
  at::Tensor grad_input, grad_offset;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), name, [&] {
    using T = scalar_t;
    Call<T> call(name, s, rois, offset, format == at::MemoryFormat::ChannelsLast, offset ? 2 : 1);
    const at::Tensor grad = start_gradient<T>(grad_output, call.as_rows);
    const at::Tensor grad_map =
        at::empty(input.sizes(), grad.options().memory_format(memory_format(call.in_place)));
    call.grad_output = grad.const_data_ptr<T>();
    call.grad_input = grad_map.mutable_data_ptr<T>();
    at::Tensor map, grad_shift;
    if (offset) {
      map = call.map(input);
      grad_shift = at::empty({s.rois, s.classes, call.blocks.per_unit, 2, s.bins_h, s.bins_w},
                             grad.options().memory_format(std::nullopt));
      call.input = map.const_data_ptr<T>();
      call.grad_shift = grad_shift.mutable_data_ptr<T>();
    }
    call.run(cpu_kernels<T>().deform_roi_pool_backward, offset.has_value(), true);
    grad_input = grad_map.to(input.scalar_type(), false, false, format);
    grad_offset = at::empty(offset ? offset->sizes() : at::IntArrayRef{0},
                            grad.options().memory_format(std::nullopt));
    if (offset && call.blocks.per_unit == 1 && s.parts_h == s.bins_h && s.parts_w == s.bins_w) {
      grad_offset = grad_shift.view(offset->sizes());
    } else if (offset) {
      sum_shifts(s, call.blocks.per_unit, call.grad_shift, grad_offset.mutable_data_ptr<T>());
    }
  });
  return {grad_input, grad_offset.to(offset ? offset->scalar_type() : input.scalar_type())};
}

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_roi_pool", TORCH_FN(deform_roi_pool_cpu));
  m.impl("deform_roi_pool_backward", TORCH_FN(deform_roi_pool_backward_cpu));
}

}  // namespace
}  // namespace d2_deformable
