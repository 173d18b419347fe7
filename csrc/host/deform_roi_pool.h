// deform_roi_pool on the host, for every back end: sizes, checked once for any caller, then the
// kernels. A Device (cpu/device.h, cuda/device.h) says how these run.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <optional>
#include <tuple>

#include "../check.h"
#include "../deform_roi_pool.h"
#include "../kernels/deform_roi_pool.h"
#include "../layout.h"

namespace d2_deformable {

inline int64_t bin_cost(const DeformRoiPoolSizes& s, int64_t channels) {
  return s.samples * s.samples * (16 + 4 * channels);
}

template <typename Device>
at::Tensor deform_roi_pool(const at::Tensor& input, const at::Tensor& rois,
                           const std::optional<at::Tensor>& offset, at::IntArrayRef output_size,
                           double spatial_scale, int64_t group_size, int64_t samples_per_part,
                           double gamma, bool round_rois) {
  constexpr const char* name = "deform_roi_pool";
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  const c10::DeviceGuard guard(input.device());
  const at::ScalarType type = Device::compute_type(input.scalar_type());
  const at::ScalarType sum_type = at::toOpMathType(type);
  const at::Tensor map = to_grouped(input, s.groups(), type);
  const at::Tensor boxes = to_coordinates(rois, sum_type);
  const at::Tensor shifts = to_coordinates(offset, sum_type);
  const at::Tensor output =
      at::empty({s.rois, s.bins_h, s.bins_w, s.top_channels}, input.options().dtype(sum_type));
  Device::dispatch(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    const DeformRoiPoolKernel<scalar_t, acc_t> kernel{
        s,
        ChannelBlocks(s.top_channels, s.class_channels(), Device::kBlock),
        map.const_data_ptr<scalar_t>(),
        boxes.const_data_ptr<acc_t>(),
        data_or_null<acc_t>(shifts),
        output.mutable_data_ptr<acc_t>()};
    Device::check_image_indices(name, kernel.rois, s.rois, s.images);
    Device::run(kernel, kernel.count(), bin_cost(s, kernel.blocks.size));
  });
  return from_channels_last(output, input.scalar_type(), memory_format(input));
}

template <typename Device>
std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t group_size, int64_t samples_per_part, double gamma, bool round_rois) {
  constexpr const char* name = "deform_roi_pool_backward";
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  check_like(name, "grad_output", grad_output, input);
  check_shape(name, "grad_output", grad_output, {s.rois, s.top_channels, s.bins_h, s.bins_w});
  Device::alert_not_deterministic(name);

  const c10::DeviceGuard guard(input.device());
  const at::ScalarType type = Device::compute_type(input.scalar_type());
  const at::ScalarType sum_type = at::toOpMathType(type);
  const at::Tensor grad = to_channels_last(grad_output, type);
  const at::Tensor boxes = to_coordinates(rois, sum_type);
  const at::Tensor shifts = to_coordinates(offset, sum_type);
  const auto sums = input.options().dtype(sum_type);
  const at::Tensor grad_map =
      at::zeros({s.images, s.height, s.width, s.groups(), s.top_channels}, sums);
  const at::Tensor grad_offset = at::empty(offset ? offset->sizes() : at::IntArrayRef{0}, sums);
  Device::dispatch(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    using acc_t = at::opmath_type<scalar_t>;
    using Add = typename Device::Add;
    const DeformRoiPoolInputGradientKernel<scalar_t, acc_t, Add> scatter{
        s,
        ChannelBlocks(s.top_channels, s.class_channels(), Device::kBlock),
        grad.const_data_ptr<scalar_t>(),
        boxes.const_data_ptr<acc_t>(),
        data_or_null<acc_t>(shifts),
        grad_map.mutable_data_ptr<acc_t>(),
        Add{}};
    Device::check_image_indices(name, scatter.rois, s.rois, s.images);
    const int64_t cost = bin_cost(s, scatter.blocks.size);
    Device::run_adding_bins(scatter, s.group_size, s.group_size, cost);
    if (offset) {
      const at::Tensor map = to_grouped(input, s.groups(), type);
      const DeformRoiPoolOffsetGradientKernel<scalar_t, acc_t> kernel{
          s,
          scatter.grad_output,
          map.const_data_ptr<scalar_t>(),
          scatter.rois,
          scatter.offset,
          grad_offset.mutable_data_ptr<acc_t>()};
      Device::run(kernel, kernel.count(), bin_cost(s, s.class_channels()));
    }
  });
  return {from_grouped(grad_map, input.scalar_type(), memory_format(input)),
          grad_offset.to(offset ? offset->scalar_type() : input.scalar_type())};
}

}  // namespace d2_deformable
