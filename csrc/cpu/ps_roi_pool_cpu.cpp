// ps_roi_pool on the CPU: converts layouts, allocates, and runs the items of work
// (roi_pool_call.h).
#include "../ps_roi_pool_sizes.h"

#include <torch/library.h>

#include "roi_pool_cpu.h"

namespace d2_deformable {
namespace {

// The kernels' arguments that forward and backward share. T is the type of sums.
template <typename T>
struct Call : PsRoiPoolCall<T> {
  at::Tensor boxes;
  RoiOrder order_of_rois;

  Call(const char* op, const PsRoiPoolSizes& s, const at::Tensor& roi_boxes, bool channels_last)
      : PsRoiPoolCall<T>{},
        boxes(to_coordinates(roi_boxes, c10::CppTypeToScalarType<T>::value)),
        order_of_rois(op, boxes.const_data_ptr<T>(), s.rois, s.images) {
    static_cast<RoiPoolCall<T>&>(*this) = roi_pool_call<T>(
        s, s.bins(), s.top_channels, std::max(s.height, s.width), channels_last, 1, order_of_rois);
    this->sizes = s;
    this->rois = boxes.const_data_ptr<T>();
  }
  void run(void (*kernel)(const PsRoiPoolCall<T>&, int64_t, const RoiScratch<T>&), bool map,
           bool grad_map) const {
    const auto& s = this->sizes;
    run_items<T>(static_cast<const PsRoiPoolCall<T>&>(*this), kernel, map, grad_map, 1,
                 s.rois * s.bins() * 16 * s.top_channels);
  }
};

at::Tensor ps_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                           at::IntArrayRef output_size, double spatial_scale, bool round_rois) {
  constexpr const char* name = "ps_roi_pool";
  const auto s = ps_roi_pool_sizes(input.sizes(), rois, output_size, spatial_scale, round_rois);
  check_coordinates(name, "rois", rois, input);
  const at::MemoryFormat format = memory_format(input);
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), name, [&] {
    using T = scalar_t;
    Call<T> call(name, s, rois, format == at::MemoryFormat::ChannelsLast);
    const at::Tensor map =
        input.to(c10::CppTypeToScalarType<T>::value).contiguous(memory_format(call.in_place));
    const at::Tensor output = at::empty({s.rois, s.top_channels, s.bins_h, s.bins_w},
                                        map.options().memory_format(memory_format(call.as_rows)));
    call.input = map.const_data_ptr<T>();
    call.output = output.mutable_data_ptr<T>();
    call.run(cpu_kernels<T>().ps_roi_pool, true, false);
    result = finish_output<T>(output, call.as_rows, input.scalar_type(), format);
  });
  return result;
}

at::Tensor ps_roi_pool_backward_cpu(const at::Tensor& grad_output, const at::Tensor& rois,
                                    at::IntArrayRef input_size, at::IntArrayRef output_size,
                                    double spatial_scale, bool round_rois, bool channels_last) {
  constexpr const char* name = "ps_roi_pool_backward";
  const auto s = ps_roi_pool_sizes(input_size, rois, output_size, spatial_scale, round_rois);
  check_coordinates(name, "rois", rois, grad_output);
  check_shape(name, "grad_output", grad_output, {s.rois, s.top_channels, s.bins_h, s.bins_w});
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(grad_output.scalar_type()), name, [&] {
    using T = scalar_t;
    Call<T> call(name, s, rois, channels_last);
    const at::Tensor grad = start_gradient<T>(grad_output, call.as_rows);
    const at::Tensor grad_map =
        at::empty(input_size, grad.options().memory_format(memory_format(call.in_place)));
    call.grad_output = grad.const_data_ptr<T>();
    call.grad_input = grad_map.mutable_data_ptr<T>();
    call.run(cpu_kernels<T>().ps_roi_pool_backward, false, true);
    result = grad_map.to(grad_output.scalar_type(), false, false, memory_format(channels_last));
  });
  return result;
}

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("ps_roi_pool", TORCH_FN(ps_roi_pool_cpu));
  m.impl("ps_roi_pool_backward", TORCH_FN(ps_roi_pool_backward_cpu));
}

}  // namespace
}  // namespace d2_deformable
