// Checks the arguments of deform_roi_align and returns its sizes, for every caller and back end.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "check.h"
#include "geometry/deform_roi_pool_geometry.h"

namespace d2_deformable {

inline DeformRoiPoolSizes deform_roi_align_sizes(const at::Tensor& input, const at::Tensor& rois,
                                                 const std::optional<at::Tensor>& offset,
                                                 at::IntArrayRef output_size, double spatial_scale,
                                                 int64_t sampling_ratio, double gamma) {
  constexpr const char* op = "deform_roi_align";
  check_map_sizes(op, input.sizes());
  check_rois(op, rois, input.size(0), output_size);
  check_coordinates(op, "rois", rois, input);
  TORCH_CHECK(sampling_ratio >= 0 && sampling_ratio <= kMostAlignSamples, op,
              ": sampling_ratio must be 0 to ", kMostAlignSamples, ", got ", sampling_ratio);

  DeformRoiPoolSizes s;
  s.images = input.size(0), s.top_channels = input.size(1);
  s.height = input.size(2), s.width = input.size(3);
  s.group_size = s.classes = 1;
  s.rois = rois.size(0), s.bins_h = output_size[0], s.bins_w = output_size[1];
  s.parts_h = s.parts_w = 1;
  s.samples = sampling_ratio;
  s.spatial_scale = spatial_scale, s.gamma = gamma, s.round_rois = false;
  s.rule = RoiSampling::kAlign;
  check_elements(op, "output", {s.rois, s.top_channels, s.bins_h, s.bins_w});
  if (offset) {
    check_coordinates(op, "offset", *offset, input);
    check_shape(op, "offset", *offset, {s.rois, 2, s.bins_h, s.bins_w});
    s.parts_h = s.bins_h, s.parts_w = s.bins_w;
  }
  return s;
}

inline DeformRoiPoolSizes deform_roi_align_backward_sizes(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t sampling_ratio, double gamma) {
  constexpr const char* op = "deform_roi_align_backward";
  const auto s = deform_roi_align_sizes(input, rois, offset, output_size, spatial_scale,
                                        sampling_ratio, gamma);
  check_like(op, "grad_output", grad_output, input);
  check_shape(op, "grad_output", grad_output, {s.rois, s.top_channels, s.bins_h, s.bins_w});
  return s;
}

}  // namespace d2_deformable
