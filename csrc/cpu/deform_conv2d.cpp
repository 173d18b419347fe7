#include "../deform_conv2d.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>

#include "parallel.h"

namespace d2_deformable {
namespace {

// Columns are made for as many rows at a time as fit into this much memory, whatever the batch.
constexpr int64_t kColumnBytes = 4 << 20;

RowRange first_rows(const DeformConv2dSizes& s, int64_t element_size) {
  const int64_t row_bytes = s.channels * s.taps() * element_size;
  const int64_t capacity =
      std::clamp<int64_t>(kColumnBytes / row_bytes, 1, std::max<int64_t>(s.rows(), 1));
  return {0, std::min(capacity, s.rows()), capacity};
}

void advance(RowRange& rows, int64_t end) {
  rows.first += rows.count;
  rows.count = std::min(rows.capacity, end - rows.first);
}

// (N, C, H, W) -> rows (N*H*W, C)
at::Tensor to_rows(const at::Tensor& map) {
  return map.permute({0, 2, 3, 1}).contiguous().view({-1, map.size(1)});
}

// rows (N*H*W, C) -> (N, C, H, W)
at::Tensor from_rows(const at::Tensor& rows, int64_t images, int64_t height, int64_t width) {
  return rows.view({images, height, width, rows.size(1)}).permute({0, 3, 1, 2}).contiguous();
}

// (O, C/groups, kernel_h, kernel_w) -> (groups, O/groups, K * C/groups), the layout of the columns
at::Tensor pack_weight(const DeformConv2dSizes& s, const at::Tensor& weight) {
  return weight.reshape({s.groups, -1, s.group_channels(), s.taps()})
      .permute({0, 1, 3, 2})
      .reshape({s.groups, s.out_channels / s.groups, s.taps() * s.group_channels()});
}

at::Tensor unpack_weight(const DeformConv2dSizes& s, const at::Tensor& packed) {
  return packed.view({s.out_channels, s.taps(), s.group_channels()})
      .permute({0, 2, 1})
      .reshape({s.out_channels, s.group_channels(), s.kernel_h, s.kernel_w});
}

template <typename T>
const T* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

at::Tensor deform_conv2d_cpu(const at::Tensor& input, const at::Tensor& offset,
                             const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, const std::optional<at::Tensor>& mask,
                             std::string_view border) {
  const auto s =
      deform_conv2d_sizes(input, offset, weight, mask, stride, padding, dilation, border);
  if (bias) {
    check_like("deform_conv2d", "bias", *bias, input);
    check_shape("deform_conv2d", "bias", *bias, {s.out_channels});
  }
  const auto input_rows = to_rows(input);
  const auto offset_c = offset.contiguous();
  const auto mask_c = contiguous(mask);
  const auto packed = pack_weight(s, weight);
  const int64_t group_out = s.out_channels / s.groups;
  RowRange rows = first_rows(s, input.element_size());
  const auto columns = at::empty({s.groups, rows.capacity, packed.size(2)}, input.options());
  const auto output = at::empty({s.rows(), s.out_channels}, input.options());

  for (; rows.count > 0; advance(rows, s.rows())) {
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "deform_conv2d_cpu", [&] {
      const DeformConv2dColumnsKernel<scalar_t, at::opmath_type<scalar_t>> kernel{
          s,
          ChannelBlocks(s.channels, s.unit, s.unit),
          rows,
          input_rows.const_data_ptr<scalar_t>(),
          offset_c.const_data_ptr<scalar_t>(),
          data_or_null<scalar_t>(mask_c),
          columns.mutable_data_ptr<scalar_t>()};
      parallel_each(kernel.count(), s.unit, kernel);
    });
    for (int64_t g = 0; g < s.groups; ++g) {
      auto out = output.narrow(0, rows.first, rows.count).narrow(1, g * group_out, group_out);
      const auto columns_g = columns[g].narrow(0, 0, rows.count);
      if (bias) {
        at::addmm_out(out, bias->narrow(0, g * group_out, group_out), columns_g, packed[g].t());
      } else {
        at::mm_out(out, columns_g, packed[g].t());
      }
    }
  }
  return from_rows(output, s.images, s.out_height, s.out_width);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv2d_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, std::string_view border) {
  const auto s =
      deform_conv2d_sizes(input, offset, weight, mask, stride, padding, dilation, border);
  check_like("deform_conv2d_backward", "grad_output", grad_output, input);
  check_shape("deform_conv2d_backward", "grad_output", grad_output,
              {s.images, s.out_channels, s.out_height, s.out_width});

  const auto input_rows = to_rows(input);
  const auto grad_rows = to_rows(grad_output);
  const auto offset_c = offset.contiguous();
  const auto mask_c = contiguous(mask);
  const auto packed = pack_weight(s, weight);
  const int64_t group_out = s.out_channels / s.groups;
  const ChannelBlocks blocks(s.channels, s.unit, kCpuBlockChannels);
  const int64_t partials = s.partials(blocks);
  RowRange rows = first_rows(s, input.element_size());
  const auto columns = at::empty({s.groups, rows.capacity, packed.size(2)}, input.options());
  const auto grad_input = at::zeros_like(input_rows);
  const auto grad_weight = at::zeros_like(packed);
  const auto grad_offset = at::empty({partials, offset.numel()}, input.options());
  const auto grad_mask = at::empty({partials, mask ? mask->numel() : 0}, input.options());

  for (; rows.count > 0; advance(rows, s.rows())) {
    const auto grad_group = [&](int64_t g) {
      return grad_rows.narrow(0, rows.first, rows.count).narrow(1, g * group_out, group_out);
    };
    for (int64_t g = 0; g < s.groups; ++g) {
      auto columns_g = columns[g].narrow(0, 0, rows.count);
      at::mm_out(columns_g, grad_group(g), packed[g]);
    }
    AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "deform_conv2d_backward_cpu", [&] {
      using acc_t = at::opmath_type<scalar_t>;
      const DeformConv2dGradientsKernel<scalar_t, acc_t, PlainAdd> gradients{
          s,
          blocks,
          rows,
          columns.const_data_ptr<scalar_t>(),
          input_rows.const_data_ptr<scalar_t>(),
          offset_c.const_data_ptr<scalar_t>(),
          data_or_null<scalar_t>(mask_c),
          grad_input.mutable_data_ptr<acc_t>(),
          grad_offset.mutable_data_ptr<acc_t>(),
          mask ? grad_mask.mutable_data_ptr<acc_t>() : nullptr,
          PlainAdd{}};
      // One thread owns one block of channels of one image: no two threads add to the same place,
      // and each place is added to in the order of the rows, whatever the number of threads.
      const int64_t first_image = rows.first / s.image_rows();
      const int64_t last_image = (rows.first + rows.count - 1) / s.image_rows();
      const int64_t items = (last_image - first_image + 1) * blocks.count();
      at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t image = first_image + item / blocks.count(), block = item % blocks.count();
          const int64_t row_begin = std::max<int64_t>(image * s.image_rows() - rows.first, 0);
          const int64_t row_end = std::min((image + 1) * s.image_rows() - rows.first, rows.count);
          for (int64_t i = row_begin * s.taps(); i < row_end * s.taps(); ++i)
            gradients(i * blocks.count() + block);
        }
      });

      // The columns once more, now over their own gradients, for the gradient of the weight.
      const DeformConv2dColumnsKernel<scalar_t, acc_t> sample{
          s,
          ChannelBlocks(s.channels, s.unit, s.unit),
          rows,
          input_rows.const_data_ptr<scalar_t>(),
          offset_c.const_data_ptr<scalar_t>(),
          data_or_null<scalar_t>(mask_c),
          columns.mutable_data_ptr<scalar_t>()};
      parallel_each(sample.count(), s.unit, sample);
    });
    for (int64_t g = 0; g < s.groups; ++g) {
      grad_weight[g].addmm_(grad_group(g).t(), columns[g].narrow(0, 0, rows.count));
    }
  }
  return {from_rows(grad_input, s.images, s.height, s.width),
          grad_offset.sum(0).view(offset.sizes()), unpack_weight(s, grad_weight),
          mask ? grad_mask.sum(0).view(mask->sizes()) : grad_mask.view({0})};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_conv2d", TORCH_FN(deform_conv2d_cpu));
  m.impl("deform_conv2d_backward", TORCH_FN(deform_conv2d_backward_cpu));
}

}  // namespace d2_deformable
