// Checks the arguments of deform_roi_pool and returns its sizes, for every caller and back end.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "check.h"
#include "geometry/deform_roi_pool_geometry.h"

namespace d2_deformable {

inline DeformRoiPoolSizes deform_roi_pool_sizes(const at::Tensor& input, const at::Tensor& rois,
                                                const std::optional<at::Tensor>& offset,
                                                at::IntArrayRef output_size, double spatial_scale,
                                                int64_t group_size, int64_t samples_per_part,
                                                double gamma, bool round_rois) {
  constexpr const char* op = "deform_roi_pool";
  check_map_sizes(op, input.sizes());
  check_rois(op, rois, input.size(0), output_size);
  check_coordinates(op, "rois", rois, input);
  check_numbers(op, "group_size, samples_per_part", {group_size, samples_per_part}, 1);
  TORCH_CHECK(input.size(1) % (group_size * group_size) == 0, op, ": input ", input.sizes(),
              " has ", input.size(1),
              " channels, not a multiple of group_size^2 = ", group_size * group_size);

  DeformRoiPoolSizes s;
  s.images = input.size(0), s.height = input.size(2), s.width = input.size(3);
  s.group_size = group_size;
  s.top_channels = input.size(1) / s.bin_groups();
  s.rois = rois.size(0), s.bins_h = output_size[0], s.bins_w = output_size[1];
  s.classes = s.parts_h = s.parts_w = 1;
  s.samples = samples_per_part;
  s.spatial_scale = spatial_scale, s.gamma = gamma, s.round_rois = round_rois;
  s.rule = RoiSampling::kPool;
  check_elements(op, "output", {s.rois, s.top_channels, s.bins_h, s.bins_w});
  if (offset) {
    check_coordinates(op, "offset", *offset, input);
    check_dims(op, "offset", *offset, 4);
    s.classes = offset->size(1) / 2, s.parts_h = offset->size(2), s.parts_w = offset->size(3);
    TORCH_CHECK(
        s.classes > 0 && s.top_channels % s.classes == 0, op, ": offset ", offset->sizes(),
        " must be (R, 2 * classes, part_h, part_w), in a number of classes that divides the ",
        s.top_channels, " output channels");
    check_numbers(op, "part_h, part_w of offset", {s.parts_h, s.parts_w}, 1);
    check_shape(op, "offset", *offset, {s.rois, 2 * s.classes, s.parts_h, s.parts_w});
  }
  return s;
}

inline DeformRoiPoolSizes deform_roi_pool_backward_sizes(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t group_size, int64_t samples_per_part, double gamma, bool round_rois) {
  constexpr const char* op = "deform_roi_pool_backward";
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  check_like(op, "grad_output", grad_output, input);
  check_shape(op, "grad_output", grad_output, {s.rois, s.top_channels, s.bins_h, s.bins_w});
  return s;
}

}  // namespace d2_deformable
