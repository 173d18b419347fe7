// ps_roi_pool on the host, for every back end: sizes, checked once for any caller, then the
// kernels. A Device (cpu/device.h, cuda/device.h) says how these run.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include "../check.h"
#include "../kernels/ps_roi_pool.h"
#include "../layout.h"
#include "../ps_roi_pool.h"

namespace d2_deformable {

template <typename Device>
at::Tensor ps_roi_pool(const at::Tensor& input, const at::Tensor& rois, at::IntArrayRef output_size,
                       double spatial_scale, bool round_rois) {
  constexpr const char* name = "ps_roi_pool";
  const auto s = ps_roi_pool_sizes(input.sizes(), rois, output_size, spatial_scale, round_rois);
  check_coordinates(name, "rois", rois, input);
  const c10::DeviceGuard guard(input.device());
  const at::ScalarType type = Device::compute_type(input.scalar_type());
  const at::ScalarType sum_type = at::toOpMathType(type);
  const at::Tensor map = to_grouped(input, s.bins(), type);
  const at::Tensor boxes = to_coordinates(rois, sum_type);
  const at::Tensor output =
      at::empty({s.rois, s.bins_h, s.bins_w, s.top_channels}, input.options().dtype(sum_type));
  Device::dispatch(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    const PsRoiPoolKernel<scalar_t, acc_t> kernel{
        s, ChannelBlocks(s.top_channels, s.top_channels, Device::kBlock),
        map.const_data_ptr<scalar_t>(), boxes.const_data_ptr<acc_t>(),
        output.mutable_data_ptr<acc_t>()};
    Device::check_image_indices(name, kernel.rois, s.rois, s.images);
    Device::run(kernel, kernel.count(), 4 * kernel.blocks.size);
  });
  return from_channels_last(output, input.scalar_type(), memory_format(input));
}

template <typename Device>
at::Tensor ps_roi_pool_backward(const at::Tensor& grad_output, const at::Tensor& rois,
                                at::IntArrayRef input_size, at::IntArrayRef output_size,
                                double spatial_scale, bool round_rois, bool channels_last) {
  constexpr const char* name = "ps_roi_pool_backward";
  const auto s = ps_roi_pool_sizes(input_size, rois, output_size, spatial_scale, round_rois);
  check_coordinates(name, "rois", rois, grad_output);
  check_shape(name, "grad_output", grad_output, {s.rois, s.top_channels, s.bins_h, s.bins_w});
  Device::alert_not_deterministic(name);

  const c10::DeviceGuard guard(grad_output.device());
  const at::ScalarType type = Device::compute_type(grad_output.scalar_type());
  const at::ScalarType sum_type = at::toOpMathType(type);
  const at::Tensor grad = to_channels_last(grad_output, type);
  const at::Tensor boxes = to_coordinates(rois, sum_type);
  const at::Tensor grad_map = at::zeros({s.images, s.height, s.width, s.bins(), s.top_channels},
                                        grad_output.options().dtype(sum_type));
  Device::dispatch(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    using Add = typename Device::Add;
    const PsRoiPoolInputGradientKernel<scalar_t, acc_t, Add> scatter{
        s,
        ChannelBlocks(s.top_channels, s.top_channels, Device::kBlock),
        grad.const_data_ptr<scalar_t>(),
        boxes.const_data_ptr<acc_t>(),
        grad_map.mutable_data_ptr<acc_t>(),
        Add{}};
    Device::check_image_indices(name, scatter.rois, s.rois, s.images);
    Device::run_adding_bins(scatter, s.bins_h, s.bins_w, 4 * scatter.blocks.size);
  });
  return from_grouped(grad_map, grad_output.scalar_type(), memory_format(channels_last));
}

}  // namespace d2_deformable
