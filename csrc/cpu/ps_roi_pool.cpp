#include "../ps_roi_pool.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "roi.h"

namespace d2_deformable {
namespace {

at::Tensor ps_roi_pool_cpu(const at::Tensor& input, const at::Tensor& rois,
                           at::IntArrayRef output_size, double spatial_scale, bool round_rois) {
  const auto s = ps_roi_pool_sizes(input.sizes(), rois, output_size, spatial_scale, round_rois);
  check_like("ps_roi_pool", "rois", rois, input);
  const auto map = to_grouped(input, s.bins());
  const auto rois_c = rois.contiguous();
  const auto output = at::empty({s.rois, s.bins_h, s.bins_w, s.top_channels}, input.options());
  AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "ps_roi_pool_cpu", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto* boxes = rois_c.const_data_ptr<scalar_t>();
    check_image_indices("ps_roi_pool", boxes, s.rois, s.images);
    const PsRoiPoolKernel<scalar_t, acc_t> kernel{
        s, ChannelBlocks(s.top_channels, s.top_channels, kCpuBlockChannels),
        map.const_data_ptr<scalar_t>(), boxes, output.mutable_data_ptr<acc_t>()};
    parallel_each(kernel.count(), 4 * kernel.blocks.size, kernel);
  });
  return output.permute({0, 3, 1, 2}).contiguous();
}

at::Tensor ps_roi_pool_backward_cpu(const at::Tensor& grad_output, const at::Tensor& rois,
                                    at::IntArrayRef input_size, at::IntArrayRef output_size,
                                    double spatial_scale, bool round_rois) {
  const auto s = ps_roi_pool_sizes(input_size, rois, output_size, spatial_scale, round_rois);
  check_like("ps_roi_pool_backward", "grad_output", grad_output, rois);
  check_shape("ps_roi_pool_backward", "grad_output", grad_output,
              {s.rois, s.top_channels, s.bins_h, s.bins_w});
  const auto grad = grad_output.permute({0, 2, 3, 1}).contiguous();
  const auto rois_c = rois.contiguous();
  const auto grad_map =
      at::zeros({s.images, s.height, s.width, s.bins(), s.top_channels}, rois.options());
  AT_DISPATCH_FLOATING_TYPES(rois.scalar_type(), "ps_roi_pool_backward_cpu", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto* boxes = rois_c.const_data_ptr<scalar_t>();
    check_image_indices("ps_roi_pool_backward", boxes, s.rois, s.images);
    const PsRoiPoolInputGradientKernel<scalar_t, acc_t, PlainAdd> scatter{
        s,
        ChannelBlocks(s.top_channels, s.top_channels, kCpuBlockChannels),
        grad.const_data_ptr<scalar_t>(),
        boxes,
        grad_map.mutable_data_ptr<acc_t>(),
        PlainAdd{}};
    scatter_bins(s, s.bins_h, s.bins_w, scatter.blocks, boxes, 4 * scatter.blocks.size, scatter);
  });
  return from_grouped(grad_map);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("ps_roi_pool", TORCH_FN(ps_roi_pool_cpu));
  m.impl("ps_roi_pool_backward", TORCH_FN(ps_roi_pool_backward_cpu));
}

}  // namespace d2_deformable
