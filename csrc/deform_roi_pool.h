// deform_roi_pool on the host, for every back end: sizes, checked once for any caller, then the
// kernels. A Device (cpu/device.h, cuda/device.h) says how these run.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <optional>
#include <tuple>

#include "check.h"
#include "kernels/deform_roi_pool.h"
#include "layout.h"

namespace d2_deformable {

inline DeformRoiPoolSizes deform_roi_pool_sizes(const at::Tensor& input, const at::Tensor& rois,
                                                const std::optional<at::Tensor>& offset,
                                                at::IntArrayRef output_size, double spatial_scale,
                                                int64_t group_size, int64_t samples_per_part,
                                                double gamma, bool round_rois) {
  constexpr const char* op = "deform_roi_pool";
  check_map_sizes(op, input.sizes());
  check_rois(op, rois, output_size);
  check_coordinates(op, "rois", rois, input);
  check_numbers(op, "group_size, samples_per_part", {group_size, samples_per_part}, 1);
  TORCH_CHECK(input.size(1) % (group_size * group_size) == 0, op, ": input ", input.sizes(),
              " has ", input.size(1),
              " channels, not a multiple of group_size^2 = ", group_size * group_size);

  DeformRoiPoolSizes s;
  s.images = input.size(0), s.height = input.size(2), s.width = input.size(3);
  s.group_size = group_size;
  s.top_channels = input.size(1) / s.groups();
  s.rois = rois.size(0), s.bins_h = output_size[0], s.bins_w = output_size[1];
  s.classes = s.parts_h = s.parts_w = 1;
  s.samples = samples_per_part;
  s.spatial_scale = spatial_scale, s.gamma = gamma, s.round_rois = round_rois;
  if (offset) {
    check_coordinates(op, "offset", *offset, input);
    check_dims(op, "offset", *offset, 4);
    s.classes = offset->size(1) / 2, s.parts_h = offset->size(2), s.parts_w = offset->size(3);
    TORCH_CHECK(
        s.classes > 0 && s.parts_h > 0 && s.parts_w > 0 && s.top_channels % s.classes == 0, op,
        ": offset ", offset->sizes(),
        " must be (R, 2 * classes, part_h, part_w), in a number of classes that divides the ",
        s.top_channels, " output channels");
    check_shape(op, "offset", *offset, {s.rois, 2 * s.classes, s.parts_h, s.parts_w});
  }
  return s;
}

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
