// Checks the arguments of deform_conv2d and returns its sizes, for every caller and back end.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "check.h"
#include "geometry/deform_conv2d_geometry.h"

namespace d2_deformable {

inline DeformConv2dSizes deform_conv2d_sizes(const at::Tensor& input, const at::Tensor& offset,
                                             const at::Tensor& weight,
                                             const std::optional<at::Tensor>& bias,
                                             const std::optional<at::Tensor>& mask,
                                             at::IntArrayRef stride, at::IntArrayRef padding,
                                             at::IntArrayRef dilation, std::string_view border) {
  constexpr const char* op = "deform_conv2d";
  check_map_sizes(op, input.sizes());
  check_dims(op, "weight", weight, 4);
  check_elements(op, "weight", weight.sizes());
  check_coordinates(op, "offset", offset, input);
  check_like(op, "weight", weight, input);
  check_numbers(op, "stride", stride, 1);
  check_numbers(op, "padding", padding, 0);
  check_numbers(op, "dilation", dilation, 1);
  TORCH_CHECK(border == "zero" || border == "legacy", op, ": border is 'zero' or 'legacy', got '",
              border, "'");

  DeformConv2dSizes s;
  s.images = input.size(0), s.channels = input.size(1), s.height = input.size(2),
  s.width = input.size(3);
  s.out_channels = weight.size(0), s.kernel_h = weight.size(2), s.kernel_w = weight.size(3);
  s.stride_h = stride[0], s.stride_w = stride[1];
  s.padding_h = padding[0], s.padding_w = padding[1];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  s.border = border == "legacy" ? Border::kLegacy : Border::kZero;
  TORCH_CHECK(weight.numel() > 0, op, ": weight ", weight.sizes(), " is empty");
  check_numbers(op, "the kernel of weight", {s.kernel_h, s.kernel_w}, 1);

  TORCH_CHECK(s.channels % weight.size(1) == 0, op, ": input ", input.sizes(), " has ", s.channels,
              " channels, which weight ", weight.sizes(), " cannot split into groups of ",
              weight.size(1));
  s.groups = s.channels / weight.size(1);
  TORCH_CHECK(s.out_channels % s.groups == 0, op, ": weight ", weight.sizes(), " has ",
              s.out_channels, " output channels, not a multiple of the ", s.groups, " groups");

  const auto out_size = [](int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                           int64_t dilation) {
    const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
    return span < 0 ? 0 : span / stride + 1;
  };
  s.out_height = out_size(s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h);
  s.out_width = out_size(s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w);
  TORCH_CHECK(s.out_height > 0 && s.out_width > 0, op, ": the kernel of weight ", weight.sizes(),
              " with dilation ", dilation, " does not fit into input ", input.sizes(),
              " padded by ", padding);
  check_elements(op, "output", {s.images, s.out_channels, s.out_height, s.out_width});

  check_dims(op, "offset", offset, 4);
  s.offset_groups = offset.size(1) / (2 * s.taps());
  TORCH_CHECK(s.offset_groups > 0 && offset.size(1) % (2 * s.taps()) == 0 &&
                  s.channels % s.offset_groups == 0,
              op, ": offset ", offset.sizes(), " must have groups * ", 2 * s.taps(),
              " channels, in a number of groups that divides the ", s.channels, " input channels");
  check_shape(op, "offset", offset, {s.images, offset.size(1), s.out_height, s.out_width});
  if (bias) {
    check_like(op, "bias", *bias, input);
    check_shape(op, "bias", *bias, {s.out_channels});
  }
  if (mask) {
    check_coordinates(op, "mask", *mask, input);
    check_shape(op, "mask", *mask,
                {s.images, s.offset_groups * s.taps(), s.out_height, s.out_width});
  }
  return s;
}

inline DeformConv2dSizes deform_conv2d_backward_sizes(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& offset,
    const at::Tensor& weight, const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, std::string_view border) {
  constexpr const char* op = "deform_conv2d_backward";
  const auto s = deform_conv2d_sizes(input, offset, weight, /*bias=*/std::nullopt, mask, stride,
                                     padding, dilation, border);
  check_like(op, "grad_output", grad_output, input);
  check_shape(op, "grad_output", grad_output,
              {s.images, s.out_channels, s.out_height, s.out_width});
  return s;
}

}  // namespace d2_deformable
