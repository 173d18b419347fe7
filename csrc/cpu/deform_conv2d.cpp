// Forward: sample the columns of as many output positions (rows) as a bounded buffer holds,
// multiply them with the weight, group by group, go on with the next rows. Backward: the other way
// round, and the columns once more for the gradient of the weight.
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

// Size of the column buffer, whatever the batch (but at least one row).
constexpr int64_t kColumnBytes = 8 << 20;

// (N, C, H, W) -> [N*H*W][C]
at::Tensor to_rows(const at::Tensor& map) {
  return map.permute({0, 2, 3, 1}).contiguous().view({-1, map.size(1)});
}

// [N*H*W][C] -> (N, C, H, W)
at::Tensor from_rows(const at::Tensor& rows, int64_t images, int64_t height, int64_t width) {
  return rows.view({images, height, width, rows.size(1)}).permute({0, 3, 1, 2}).contiguous();
}

// What a call reads, in the kernels' layouts, and the buffer for its columns.
struct Operands {
  DeformConv2dSizes sizes;
  at::Tensor input;    // [N*H*W][C]
  at::Tensor offset;   // (N, G*K*2, Ho, Wo)
  at::Tensor mask;     // (N, G*K, Ho, Wo), or undefined
  at::Tensor weight;   // [groups][O / groups][K * C / groups]
  at::Tensor columns;  // [groups][capacity][K * C / groups]

  Operands(const DeformConv2dSizes& s, const at::Tensor& input_map, const at::Tensor& offset_map,
           const at::Tensor& weight_map, const std::optional<at::Tensor>& mask_map)
      : sizes(s),
        input(to_rows(input_map)),
        offset(offset_map.contiguous()),
        mask(mask_map ? mask_map->contiguous() : at::Tensor()),
        weight(weight_map
                   .reshape({s.groups, s.out_channels / s.groups, s.channels / s.groups, s.taps()})
                   .transpose(2, 3)
                   .flatten(2)
                   .contiguous()) {
    const int64_t row_bytes = s.channels * s.taps() * input.element_size();
    const int64_t capacity =
        std::clamp<int64_t>(kColumnBytes / row_bytes, 1, std::max<int64_t>(s.rows(), 1));
    columns = at::empty({s.groups, capacity, weight.size(2)}, input.options());
  }

  RowRange first_rows() const {
    return {0, std::min(columns.size(1), sizes.rows()), columns.size(1)};
  }
  void advance(RowRange& rows) const {
    rows.first += rows.count;
    rows.count = std::min(rows.capacity, sizes.rows() - rows.first);
  }

  at::Tensor group_columns(const RowRange& rows, int64_t group) const {
    return columns[group].narrow(0, 0, rows.count);
  }
  // The rows and the group's channels of [N*Ho*Wo][O].
  at::Tensor group_output(const at::Tensor& output, const RowRange& rows, int64_t group) const {
    const int64_t channels = sizes.out_channels / sizes.groups;
    return output.narrow(0, rows.first, rows.count).narrow(1, group * channels, channels);
  }

  // Each offset group's channels, in blocks of at most `size`.
  ChannelBlocks blocks(int64_t size) const {
    return ChannelBlocks(sizes.channels, sizes.channels / sizes.offset_groups, size);
  }

  template <typename scalar_t>
  const scalar_t* mask_data() const {
    return mask.defined() ? mask.const_data_ptr<scalar_t>() : nullptr;
  }
};

int64_t tap_cost(int64_t channels) { return 64 + 4 * channels; }

void fill_columns(const Operands& op, const RowRange& rows) {
  const ChannelBlocks blocks = op.blocks(op.sizes.channels);
  AT_DISPATCH_FLOATING_TYPES(op.input.scalar_type(), "deform_conv2d on the CPU", [&] {
    const DeformConv2dColumnsKernel<scalar_t, at::opmath_type<scalar_t>> kernel{
        op.sizes,
        blocks,
        rows,
        op.input.const_data_ptr<scalar_t>(),
        op.offset.const_data_ptr<scalar_t>(),
        op.mask_data<scalar_t>(),
        op.columns.mutable_data_ptr<scalar_t>()};
    parallel_each(kernel.count(), tap_cost(blocks.size), kernel);
  });
}

// From the gradients of the columns, in the buffer: adds to grad_input [N*H*W][C], and sets the
// rows' places in the partial sums grad_offset [P][offset] and grad_mask [P][mask].
void scatter_columns(const Operands& op, const RowRange& rows, const ChannelBlocks& blocks,
                     const at::Tensor& grad_input, const at::Tensor& grad_offset,
                     const at::Tensor& grad_mask) {
  const auto& s = op.sizes;
  AT_DISPATCH_FLOATING_TYPES(op.input.scalar_type(), "deform_conv2d_backward on the CPU", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const DeformConv2dGradientsKernel<scalar_t, acc_t, PlainAdd> kernel{
        s,
        blocks,
        rows,
        op.columns.const_data_ptr<scalar_t>(),
        op.input.const_data_ptr<scalar_t>(),
        op.offset.const_data_ptr<scalar_t>(),
        op.mask_data<scalar_t>(),
        grad_input.mutable_data_ptr<acc_t>(),
        grad_offset.mutable_data_ptr<acc_t>(),
        op.mask.defined() ? grad_mask.mutable_data_ptr<acc_t>() : nullptr,
        PlainAdd{}};
    // One thread owns one block of channels of one image: no two threads add to the same place, and
    // each place is added to in the order of the rows, whatever the number of threads.
    const int64_t first_image = rows.first / s.image_rows();
    const int64_t images = (rows.first + rows.count - 1) / s.image_rows() - first_image + 1;
    const int64_t calls = rows.count * s.taps() * blocks.count(), items = images * blocks.count();
    parallel_each(items, 2 * tap_cost(blocks.size) * calls / items, [&](int64_t item) {
      const int64_t image = first_image + item / blocks.count(), block = item % blocks.count();
      const int64_t begin = std::max<int64_t>(image * s.image_rows() - rows.first, 0);
      const int64_t end = std::min((image + 1) * s.image_rows() - rows.first, rows.count);
      for (int64_t row_tap = begin * s.taps(); row_tap < end * s.taps(); ++row_tap) {
        kernel(row_tap * blocks.count() + block);
      }
    });
  });
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
  const Operands op(s, input, offset, weight, mask);
  const auto output = at::empty({s.rows(), s.out_channels}, input.options());
  for (RowRange rows = op.first_rows(); rows.count > 0; op.advance(rows)) {
    fill_columns(op, rows);
    for (int64_t g = 0; g < s.groups; ++g) {
      auto out = op.group_output(output, rows, g);
      if (bias) {
        at::addmm_out(out, bias->chunk(s.groups)[g], op.group_columns(rows, g), op.weight[g].t());
      } else {
        at::mm_out(out, op.group_columns(rows, g), op.weight[g].t());
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

  const Operands op(s, input, offset, weight, mask);
  const ChannelBlocks blocks = op.blocks(kCpuBlockChannels);
  const auto grad_rows = to_rows(grad_output);
  const auto grad_input = at::zeros_like(op.input);
  const auto grad_offset = at::empty({blocks.per_unit, offset.numel()}, input.options());
  const auto grad_mask = at::empty({blocks.per_unit, mask ? mask->numel() : 0}, input.options());
  const auto grad_weight = at::zeros_like(op.weight);
  for (RowRange rows = op.first_rows(); rows.count > 0; op.advance(rows)) {
    for (int64_t g = 0; g < s.groups; ++g) {
      auto grad_columns = op.group_columns(rows, g);
      at::mm_out(grad_columns, op.group_output(grad_rows, rows, g), op.weight[g]);
    }
    scatter_columns(op, rows, blocks, grad_input, grad_offset, grad_mask);
    fill_columns(op, rows);
    for (int64_t g = 0; g < s.groups; ++g) {
      grad_weight[g].addmm_(op.group_output(grad_rows, rows, g).t(), op.group_columns(rows, g));
    }
  }
  return {from_rows(grad_input, s.images, s.height, s.width),
          grad_offset.sum(0).view(offset.sizes()),
          grad_weight.view({s.out_channels, s.taps(), s.channels / s.groups})
              .transpose(1, 2)
              .reshape(weight.sizes())
              .contiguous(),
          mask ? grad_mask.sum(0).view(mask->sizes()) : grad_mask.view({0})};
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_conv2d", TORCH_FN(deform_conv2d_cpu));
  m.impl("deform_conv2d_backward", TORCH_FN(deform_conv2d_backward_cpu));
}

}  // namespace d2_deformable
