// deform_conv2d on the host, for every back end: sizes, checked once for any caller, then the way
// through the kernels. A Device (cpu/device.h, cuda/device.h) says how these run.
//
// Forward: sample the columns of as many output positions (rows) as a bounded buffer holds,
// multiply them with the weight, group by group, go on with the next rows. Backward: the other way
// round, and the columns once more for the gradient of the weight.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>

#include "../check.h"
#include "../deform_conv2d.h"
#include "../kernels/deform_conv2d.h"
#include "../layout.h"

namespace d2_deformable {

// What a call reads, in the kernels' layouts and types, and the buffer for its columns.
template <typename Device>
struct DeformConv2dOperands {
  DeformConv2dSizes sizes;
  at::ScalarType type, sum_type;
  at::Tensor input;    // [N][H][W][C]
  at::Tensor offset;   // [N][G][K][y, x][Ho][Wo], of sum_type
  at::Tensor mask;     // [N][G][K][Ho][Wo], of sum_type, or undefined
  at::Tensor weight;   // [groups][O / groups][K * C / groups]
  at::Tensor columns;  // [groups][capacity][K * C / groups]

  DeformConv2dOperands(const DeformConv2dSizes& s, const at::Tensor& input_map,
                       const at::Tensor& offset_map, const at::Tensor& weight_map,
                       const std::optional<at::Tensor>& mask_map)
      : sizes(s),
        type(Device::compute_type(input_map.scalar_type())),
        sum_type(at::toOpMathType(type)),
        input(to_channels_last(input_map, type)),
        offset(to_coordinates(offset_map, sum_type)),
        mask(to_coordinates(mask_map, sum_type)),
        weight(weight_map.to(type)
                   .reshape({s.groups, s.out_channels / s.groups, s.channels / s.groups, s.taps()})
                   .transpose(2, 3)
                   .flatten(2)
                   .contiguous()) {
    const int64_t row_bytes = s.channels * s.taps() * input.element_size();
    const int64_t capacity =
        std::clamp<int64_t>(Device::kColumnBytes / row_bytes, 1, std::max<int64_t>(s.rows(), 1));
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
  static int64_t tap_cost(const ChannelBlocks& blocks) { return 64 + 4 * blocks.size; }

  void fill_columns(const RowRange& rows) const {
    Device::dispatch(type, [&](auto zero) {
      using scalar_t = decltype(zero);
      using acc_t = at::opmath_type<scalar_t>;
      const DeformConv2dColumnsKernel<scalar_t, acc_t> kernel{sizes,
                                                              blocks(Device::kLongBlock),
                                                              rows,
                                                              input.const_data_ptr<scalar_t>(),
                                                              offset.const_data_ptr<acc_t>(),
                                                              data_or_null<acc_t>(mask),
                                                              columns.mutable_data_ptr<scalar_t>()};
      Device::run(kernel, kernel.count(), tap_cost(kernel.blocks));
    });
  }

  // From the gradients of the columns, in the buffer: adds to grad_input [N][H][W][C], and sets the
  // rows' places in the partial sums grad_offset [P][offset] and grad_mask [P][mask].
  void scatter_columns(const RowRange& rows, const ChannelBlocks& blocks,
                       const at::Tensor& grad_input, const at::Tensor& grad_offset,
                       const at::Tensor& grad_mask) const {
    Device::dispatch(type, [&](auto zero) {
      using scalar_t = decltype(zero);
      using acc_t = at::opmath_type<scalar_t>;
      using Add = typename Device::Add;
      const DeformConv2dGradientsKernel<scalar_t, acc_t, Add> kernel{
          sizes,
          blocks,
          rows,
          columns.const_data_ptr<scalar_t>(),
          input.const_data_ptr<scalar_t>(),
          offset.const_data_ptr<acc_t>(),
          data_or_null<acc_t>(mask),
          grad_input.mutable_data_ptr<acc_t>(),
          grad_offset.mutable_data_ptr<acc_t>(),
          mask.defined() ? grad_mask.mutable_data_ptr<acc_t>() : nullptr,
          Add{}};
      Device::run_adding_rows(kernel, 2 * tap_cost(blocks));
    });
  }
};

template <typename Device>
at::Tensor deform_conv2d(const at::Tensor& input, const at::Tensor& offset,
                         const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         const std::optional<at::Tensor>& mask, std::string_view border) {
  const auto s =
      deform_conv2d_sizes(input, offset, weight, mask, stride, padding, dilation, border);
  if (bias) {
    check_like("deform_conv2d", "bias", *bias, input);
    check_shape("deform_conv2d", "bias", *bias, {s.out_channels});
  }
  const c10::DeviceGuard guard(input.device());
  const DeformConv2dOperands<Device> op(s, input, offset, weight, mask);
  const auto output = at::empty({s.rows(), s.out_channels}, op.input.options());
  for (RowRange rows = op.first_rows(); rows.count > 0; op.advance(rows)) {
    op.fill_columns(rows);
    for (int64_t g = 0; g < s.groups; ++g) {
      auto out = op.group_output(output, rows, g);
      const auto columns = op.group_columns(rows, g), group_weight = op.weight[g].t();
      if (bias) {
        at::addmm_out(out, bias->to(op.type).chunk(s.groups)[g], columns, group_weight);
      } else {
        at::mm_out(out, columns, group_weight);
      }
    }
  }
  return from_channels_last(output.view({s.images, s.out_height, s.out_width, s.out_channels}),
                            input.scalar_type(), memory_format(input));
}

template <typename Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deform_conv2d_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, std::string_view border) {
  constexpr const char* name = "deform_conv2d_backward";
  const auto s =
      deform_conv2d_sizes(input, offset, weight, mask, stride, padding, dilation, border);
  check_like(name, "grad_output", grad_output, input);
  check_shape(name, "grad_output", grad_output,
              {s.images, s.out_channels, s.out_height, s.out_width});
  Device::alert_not_deterministic(name);

  const c10::DeviceGuard guard(input.device());
  const DeformConv2dOperands<Device> op(s, input, offset, weight, mask);
  const ChannelBlocks blocks = op.blocks(Device::kBlock);
  const auto grad_rows = to_channels_last(grad_output, op.type).view({s.rows(), s.out_channels});
  const auto sums = op.input.options().dtype(op.sum_type);
  const auto grad_input = at::zeros(op.input.sizes(), sums);
  const auto grad_offset = at::empty({blocks.per_unit, offset.numel()}, sums);
  const auto grad_mask = at::empty({blocks.per_unit, mask ? mask->numel() : 0}, sums);
  const auto grad_weight = at::zeros(op.weight.sizes(), sums);
  auto product = at::empty({0}, op.weight.options());  // of half-precision matrices
  for (RowRange rows = op.first_rows(); rows.count > 0; op.advance(rows)) {
    for (int64_t g = 0; g < s.groups; ++g) {
      auto grad_columns = op.group_columns(rows, g);
      at::mm_out(grad_columns, op.group_output(grad_rows, rows, g), op.weight[g]);
    }
    op.scatter_columns(rows, blocks, grad_input, grad_offset, grad_mask);
    op.fill_columns(rows);
    for (int64_t g = 0; g < s.groups; ++g) {
      const auto grad_out = op.group_output(grad_rows, rows, g).t();
      const auto columns = op.group_columns(rows, g);
      if (op.type == op.sum_type) {
        grad_weight[g].addmm_(grad_out, columns);
      } else {
        at::mm_out(product, grad_out, columns);
        grad_weight[g].add_(product);
      }
    }
  }
  return {from_channels_last(grad_input, input.scalar_type(), memory_format(input)),
          grad_offset.sum(0).view(offset.sizes()).to(offset.scalar_type()),
          grad_weight.view({s.out_channels, s.taps(), s.channels / s.groups})
              .transpose(1, 2)
              .reshape(weight.sizes())
              .to(weight.scalar_type())
              .contiguous(),
          mask ? grad_mask.sum(0).view(mask->sizes()).to(mask->scalar_type())
               : at::empty({0}, input.options())};
}

}  // namespace d2_deformable
