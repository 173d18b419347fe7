// ps_roi_pool on CUDA. Lists the RoIs by image; then a block of threads works on each plane, whose
// pixels are contiguous.
#include "../ps_roi_pool_sizes.h"

#include <ATen/Context.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "../layout.h"
#include "kernels/ps_roi_pool_cuda_kernel.h"
#include "roi_pool_cuda.h"

namespace d2_deformable {
namespace {

constexpr const char* kOp = "ps_roi_pool";

// Work of one call; one bin per RoI reads each plane.
RoiWork ps_roi_work(const PsRoiPoolSizes& s) {
  constexpr int64_t kPixelsPerBin = 9;  // roughly, for the RoIs of a detector
  const int64_t planes = s.images * s.top_channels * s.bins();
  check_32_bits(kOp, "channels of all images", planes);
  return {planes, s.height * s.width, ceil_div(s.rois, std::max<int64_t>(s.images, 1)),
          /*bins=*/1, kPixelsPerBin};
}

at::Tensor ps_roi_pool_cuda(const at::Tensor& input, const at::Tensor& rois,
                            at::IntArrayRef output_size, double spatial_scale, bool round_rois) {
  const auto s = ps_roi_pool_sizes(input.sizes(), rois, output_size, spatial_scale, round_rois);
  check_coordinates(kOp, "rois", rois, input);
  const c10::DeviceGuard guard(input.device());
  const RoiPlan plan = plan_reading(ps_roi_work(s), input.element_size(), current_gpu());
  const at::Tensor map = input.contiguous();
  const at::Tensor boxes = to_coordinates(rois, at::toOpMathType(input.scalar_type()));
  const at::Tensor output =
      at::empty({s.rois, s.top_channels, s.bins_h, s.bins_w}, input.options());
  dispatch_map(input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    const RoiListTensors<acc_t, PsRoiBins<acc_t>> listed(kOp, s, boxes);
    launch_plan(PsRoiPoolKernel<scalar_t, acc_t>{s, PsRoiPoolDivisors(s), plan, listed.lists(),
                                                 map.const_data_ptr<scalar_t>(),
                                                 output.mutable_data_ptr<scalar_t>()});
  });
  return output.contiguous(memory_format(input));
}

at::Tensor ps_roi_pool_backward_cuda(const at::Tensor& grad_output, const at::Tensor& rois,
                                     at::IntArrayRef input_size, at::IntArrayRef output_size,
                                     double spatial_scale, bool round_rois, bool channels_last) {
  const auto s = ps_roi_pool_sizes(input_size, rois, output_size, spatial_scale, round_rois);
  check_coordinates("ps_roi_pool_backward", "rois", rois, grad_output);
  check_shape("ps_roi_pool_backward", "grad_output", grad_output,
              {s.rois, s.top_channels, s.bins_h, s.bins_w});
  const c10::DeviceGuard guard(grad_output.device());
  const at::ScalarType type = grad_output.scalar_type(), sum_type = at::toOpMathType(type);
  const bool in_order = at::globalContext().deterministicAlgorithms();
  const RoiPlan plan =
      plan_adding(ps_roi_work(s), c10::elementSize(sum_type), in_order, current_gpu());
  const at::Tensor grad = grad_output.contiguous();
  const at::Tensor boxes = to_coordinates(rois, sum_type);
  const PlaneGradient grad_input(plan, input_size, grad_output.options(), sum_type);
  dispatch_map(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    const RoiListTensors<acc_t, PsRoiBins<acc_t>> listed(kOp, s, boxes);
    dispatch_order(in_order, [&](auto ordered) {
      launch_plan(PsRoiPoolInputGradientKernel<scalar_t, acc_t, ordered.value>{
          s, PsRoiPoolDivisors(s), plan, listed.lists(), grad.const_data_ptr<scalar_t>(),
          grad_input.template written<scalar_t>(), grad_input.template added_to<acc_t>()});
    });
  });
  return grad_input.result(type, memory_format(channels_last));
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CUDA, m) {
  m.impl("ps_roi_pool", TORCH_FN(ps_roi_pool_cuda));
  m.impl("ps_roi_pool_backward", TORCH_FN(ps_roi_pool_backward_cuda));
}

}  // namespace d2_deformable
