#include "../deform_roi_pool.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "roi.h"

namespace d2_deformable {
namespace {

int64_t bin_cost(const DeformRoiPoolSizes& s, int64_t channels) {
  return s.samples * s.samples * (16 + 4 * channels);
}

at::Tensor deform_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                               const std::optional<at::Tensor>& offset, at::IntArrayRef output_size,
                               double spatial_scale, int64_t group_size, int64_t samples_per_part,
                               double gamma, bool round_rois) {
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  const auto map = to_grouped(input, s.groups());
  const auto rois_c = rois.contiguous();
  const auto offset_c = offset ? offset->contiguous() : at::Tensor();
  const auto output = at::empty({s.rois, s.bins_h, s.bins_w, s.top_channels}, input.options());
  AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "deform_roi_pool_cpu", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto* boxes = rois_c.const_data_ptr<scalar_t>();
    check_image_indices("deform_roi_pool", boxes, s.rois, s.images);
    const DeformRoiPoolKernel<scalar_t, acc_t> kernel{
        s,
        ChannelBlocks(s.top_channels, s.class_channels(), kCpuBlockChannels),
        map.const_data_ptr<scalar_t>(),
        boxes,
        offset ? offset_c.const_data_ptr<scalar_t>() : nullptr,
        output.mutable_data_ptr<acc_t>()};
    parallel_each(kernel.count(), bin_cost(s, kernel.blocks.size), kernel);
  });
  return output.permute({0, 3, 1, 2}).contiguous();
}

std::tuple<at::Tensor, at::Tensor> deform_roi_pool_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& rois,
    const std::optional<at::Tensor>& offset, at::IntArrayRef output_size, double spatial_scale,
    int64_t group_size, int64_t samples_per_part, double gamma, bool round_rois) {
  const auto s = deform_roi_pool_sizes(input, rois, offset, output_size, spatial_scale, group_size,
                                       samples_per_part, gamma, round_rois);
  check_like("deform_roi_pool_backward", "grad_output", grad_output, input);
  check_shape("deform_roi_pool_backward", "grad_output", grad_output,
              {s.rois, s.top_channels, s.bins_h, s.bins_w});
  const auto grad = grad_output.permute({0, 2, 3, 1}).contiguous();
  const auto rois_c = rois.contiguous();
  const auto offset_c = offset ? offset->contiguous() : at::Tensor();
  const auto grad_map =
      at::zeros({s.images, s.height, s.width, s.groups(), s.top_channels}, input.options());
  const auto grad_offset = offset ? at::empty_like(offset_c) : at::empty({0}, input.options());
  AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "deform_roi_pool_backward_cpu", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto* boxes = rois_c.const_data_ptr<scalar_t>();
    check_image_indices("deform_roi_pool_backward", boxes, s.rois, s.images);
    const auto* shifts = offset ? offset_c.const_data_ptr<scalar_t>() : nullptr;
    const DeformRoiPoolInputGradientKernel<scalar_t, acc_t, PlainAdd> scatter{
        s,
        ChannelBlocks(s.top_channels, s.class_channels(), kCpuBlockChannels),
        grad.const_data_ptr<scalar_t>(),
        boxes,
        shifts,
        grad_map.mutable_data_ptr<acc_t>(),
        PlainAdd{}};
    const int64_t cost = bin_cost(s, scatter.blocks.size);
    scatter_bins(s, s.group_size, s.group_size, scatter.blocks, boxes, cost, scatter);
    if (offset) {
      const auto map = to_grouped(input, s.groups());
      const DeformRoiPoolOffsetGradientKernel<scalar_t, acc_t> kernel{
          s,      grad.const_data_ptr<scalar_t>(),      map.const_data_ptr<scalar_t>(), boxes,
          shifts, grad_offset.mutable_data_ptr<acc_t>()};
      parallel_each(kernel.count(), bin_cost(s, s.class_channels()), kernel);
    }
  });
  return {from_grouped(grad_map), grad_offset};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_roi_pool", TORCH_FN(deform_roi_pool_cpu));
  m.impl("deform_roi_pool_backward", TORCH_FN(deform_roi_pool_backward_cpu));
}

}  // namespace d2_deformable
