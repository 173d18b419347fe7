// deform_roi_pool and deform_roi_align on CUDA. List the RoIs by image; then a block of threads
// works on each plane, whose pixels are contiguous. The gradient of the offset takes a buffer of
// two numbers, of the type of sums, per element of the output.
#include "../deform_roi_align_sizes.h"
#include "../deform_roi_pool_sizes.h"

#include <ATen/Context.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <tuple>

#include "../layout.h"
#include "kernels/deform_roi_pool_cuda_kernel.h"
#include "kernels/deform_roi_pool_input_gradient_cuda_kernel.h"
#include "kernels/deform_roi_pool_offset_gradient_cuda_kernel.h"
#include "roi_pool_cuda.h"

namespace d2_deformable {
namespace {

// Calls run(rule), with the rule as a compile-time constant.
template <typename Run>
void dispatch_rule(RoiSampling rule, const Run& run) {
  if (rule == RoiSampling::kAlign) {
    run(std::integral_constant<RoiSampling, RoiSampling::kAlign>());
  } else {
    run(std::integral_constant<RoiSampling, RoiSampling::kPool>());
  }
}

// op: for messages
RoiWork deform_roi_work(const char* op, const DeformRoiPoolSizes& s) {
  const int64_t planes = s.images * s.top_channels * s.bin_groups();
  check_32_bits(op, "channels of all images", planes);
  check_32_bits(op, "elements of the output per RoI", s.top_channels * s.bins());
  check_32_bits(op, "bins times groups per side",
                (s.group_size + 1) * (std::max(s.bins_h, s.bins_w) + 1));
  check_32_bits(op, "bins times parts per side",
                std::max(s.bins_h * s.parts_h, s.bins_w * s.parts_w));
  check_32_bits(op, "offsets per RoI", s.classes * 2 * s.parts_h * s.parts_w);
  const int64_t bins = ceil_div(s.bins_h, s.group_size) * ceil_div(s.bins_w, s.group_size);
  // For samples a little less than a pixel apart; about 4 where their number follows the RoI.
  const int64_t samples = s.samples > 0 ? s.samples : 4;
  const int64_t reads_per_bin = (samples + 1) * (samples + 1);
  return {planes, s.height * s.width, ceil_div(s.rois, std::max<int64_t>(s.images, 1)), bins,
          reads_per_bin};
}

at::Tensor forward(const char* op, const DeformRoiPoolSizes& s, const at::Tensor& input,
                   const at::Tensor& rois, const std::optional<at::Tensor>& offset) {
  const c10::DeviceGuard guard(input.device());
  const at::ScalarType sum_type = at::toOpMathType(input.scalar_type());
  const RoiPlan plan = plan_reading(deform_roi_work(op, s), input.element_size(), current_gpu());
  const at::Tensor map = input.contiguous();
  const at::Tensor boxes = to_coordinates(rois, sum_type);
  const at::Tensor offsets = to_coordinates(offset, sum_type);
  const at::Tensor output =
      at::empty({s.rois, s.top_channels, s.bins_h, s.bins_w}, input.options());
  dispatch_map(input.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    const RoiListTensors<acc_t, DeformRoiBins<acc_t>> listed(op, s, boxes);
    dispatch_rule(s.rule, [&](auto rule) {
      launch_plan(DeformRoiPoolKernel<scalar_t, acc_t, rule.value>{
          s, DeformRoiPoolDivisors(s), plan, listed.lists(), map.const_data_ptr<scalar_t>(),
          data_or_null<acc_t>(offsets), output.mutable_data_ptr<scalar_t>()});
    });
  });
  return output.contiguous(memory_format(input));
}

std::tuple<at::Tensor, at::Tensor> backward(const char* op, const DeformRoiPoolSizes& s,
                                            const at::Tensor& grad_output, const at::Tensor& input,
                                            const at::Tensor& rois,
                                            const std::optional<at::Tensor>& offset) {
  const c10::DeviceGuard guard(input.device());
  const at::ScalarType type = input.scalar_type(), sum_type = at::toOpMathType(type);
  const bool in_order = at::globalContext().deterministicAlgorithms();
  const RoiWork work = deform_roi_work(op, s);
  const RoiGpu gpu = current_gpu();
  const RoiPlan plan = plan_adding(work, c10::elementSize(sum_type), in_order, gpu);
  const at::Tensor grad = grad_output.contiguous();
  const at::Tensor boxes = to_coordinates(rois, sum_type);
  const at::Tensor offsets = to_coordinates(offset, sum_type);
  const PlaneGradient grad_input(plan, input.sizes(), input.options(), sum_type);
  const at::Tensor grad_offset =
      at::empty(offset ? offset->sizes() : at::IntArrayRef({0}), grad.options().dtype(sum_type));
  dispatch_map(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    const RoiListTensors<acc_t, DeformRoiBins<acc_t>> listed(op, s, boxes);
    const DeformRoiPoolDivisors by(s);
    dispatch_rule(s.rule, [&](auto rule) {
      dispatch_order(in_order, [&](auto ordered) {
        launch_plan(DeformRoiPoolInputGradientKernel<scalar_t, acc_t, rule.value, ordered.value>{
            s, by, plan, listed.lists(), grad.const_data_ptr<scalar_t>(),
            data_or_null<acc_t>(offsets), grad_input.template written<scalar_t>(),
            grad_input.template added_to<acc_t>()});
      });
    });
    if (!offset) return;
    const at::Tensor map = input.contiguous();
    const at::Tensor grad_shift = at::empty({2, grad.numel()}, grad_offset.options());
    dispatch_rule(s.rule, [&](auto rule) {
      launch_plan(DeformRoiPoolShiftGradientKernel<scalar_t, acc_t, rule.value>{
          s, by, plan_reading(work, input.element_size(), gpu), listed.lists(),
          grad.const_data_ptr<scalar_t>(), map.const_data_ptr<scalar_t>(),
          offsets.const_data_ptr<acc_t>(), grad_shift.mutable_data_ptr<acc_t>()});
    });
    const DeformRoiPoolOffsetGradientKernel<scalar_t, acc_t> add_up{
        s, plan_lanes(s.class_channels()), grad_shift.const_data_ptr<acc_t>(),
        boxes.const_data_ptr<acc_t>(), grad_offset.mutable_data_ptr<acc_t>()};
    launch_blocks(add_up, {plan_blocks(add_up.owners(), add_up.lanes), kLaunchThreads, 0});
  });
  return {grad_input.result(type, memory_format(input)),
          grad_offset.to(offset ? offset->scalar_type() : type)};
}

at::Tensor deform_roi_pool_cuda(const at::Tensor& input, const at::Tensor& rois,
                                const std::optional<at::Tensor>& offset,
                                at::IntArrayRef output_size, double spatial_scale,
                                int64_t group_size, int64_t samples_per_part, double gamma,
                                bool round_rois) {
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  return forward("deform_roi_pool", s, input, rois, offset);
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t group_size, int64_t samples_per_part, double gamma, bool round_rois) {
  const auto s =
      deform_roi_pool_backward_sizes(grad_output, input, rois, offset, output_size, spatial_scale,
                                     group_size, samples_per_part, gamma, round_rois);
  return backward("deform_roi_pool", s, grad_output, input, rois, offset);
}

at::Tensor deform_roi_align_cuda(const at::Tensor& input, const at::Tensor& rois,
                                 const std::optional<at::Tensor>& offset,
                                 at::IntArrayRef output_size, double spatial_scale,
                                 int64_t sampling_ratio, double gamma) {
  const auto s = deform_roi_align_sizes(input, rois, offset, output_size, spatial_scale,
                                        sampling_ratio, gamma);
  return forward("deform_roi_align", s, input, rois, offset);
}

std::tuple<at::Tensor, at::Tensor> deform_roi_align_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t sampling_ratio, double gamma) {
  const auto s = deform_roi_align_backward_sizes(grad_output, input, rois, offset, output_size,
                                                 spatial_scale, sampling_ratio, gamma);
  return backward("deform_roi_align", s, grad_output, input, rois, offset);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_FN(deform_roi_pool_cuda));
  m.impl("deform_roi_pool_backward", TORCH_FN(deform_roi_pool_backward_cuda));
  m.impl("deform_roi_align", TORCH_FN(deform_roi_align_cuda));
  m.impl("deform_roi_align_backward", TORCH_FN(deform_roi_align_backward_cuda));
}

}  // namespace d2_deformable
