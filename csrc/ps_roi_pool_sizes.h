// Checks the arguments of ps_roi_pool and returns its sizes, for every caller and back end.
#pragma once

#include <ATen/core/Tensor.h>

#include "check.h"
#include "geometry/ps_roi_pool_geometry.h"

namespace d2_deformable {

inline PsRoiPoolSizes ps_roi_pool_sizes(at::IntArrayRef input_size, const at::Tensor& rois,
                                        at::IntArrayRef output_size, double spatial_scale,
                                        bool round_rois) {
  constexpr const char* op = "ps_roi_pool";
  check_map_sizes(op, input_size);
  check_rois(op, rois, input_size[0], output_size);
  const int64_t bins = output_size[0] * output_size[1];
  TORCH_CHECK(input_size[1] % bins == 0, op, ": input ", input_size, " has ", input_size[1],
              " channels, not a multiple of the ", bins, " bins");
  check_elements(op, "output",
                 {rois.size(0), input_size[1] / bins, output_size[0], output_size[1]});
  return {input_size[0],  input_size[1] / bins, input_size[2], input_size[3], rois.size(0),
          output_size[0], output_size[1],       spatial_scale, round_rois};
}

}  // namespace d2_deformable
