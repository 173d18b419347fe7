// deform_conv2d on the CPU: what is converted and allocated, and how threads share the work.
#include "../deform_conv2d.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../host/deform_conv2d.h"
#include "device.h"
#include "layout.h"

namespace d2_deformable {
namespace {

// Columns of one chunk of taps; with the rows of the result they fit into an L2 cache.
constexpr int64_t kChunkBytes = 460 << 10;
// A multiple of the rows that micro-kernels compute, and of vectors.
constexpr int64_t kTile = 112;

template <typename T>
at::Tensor forward(const DeformConv2dSizes& s, const at::Tensor& input_map,
                   const at::Tensor& offset_map, const at::Tensor& weight_map,
                   const std::optional<at::Tensor>& bias_vector,
                   const std::optional<at::Tensor>& mask_map) {
  const auto& kernels = cpu_kernels<T>();
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto format = memory_format(input_map);
  const auto input = to_channels_last<T>(input_map);
  const auto offset = to_coordinates(offset_map, type), mask = to_coordinates(mask_map, type);
  const auto weight = to_coordinates(weight_map, type), bias = to_coordinates(bias_vector, type);
  const auto output =
      at::empty({s.images, s.out_channels, s.out_height, s.out_width}, input.options(), format);
  const auto zeros = at::zeros({s.channels}, input.options());

  const int64_t panels = s.groups * weight_panels<T>(s, kernels.panel);
  const int64_t panel = s.taps() * (s.channels / s.groups) * kernels.panel;
  const Scratch<T> packed(panels * panel);
  at::parallel_for(0, panels, 1 + 32768 / panel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.pack_weight(s, weight.template const_data_ptr<T>(), i, packed.data());
    }
  });

  DeformConv2dForward<T> op;
  op.sizes = s;
  const int64_t pixel = s.channels * sizeof(T);
  op.tile = std::clamp<int64_t>(kChunkBytes / pixel, 1, kTile);
  op.chunk = std::clamp<int64_t>(kChunkBytes / (op.tile * pixel), 1, s.taps());
  op.input = input.template const_data_ptr<T>();
  op.zeros = zeros.template const_data_ptr<T>();
  op.offset = offset.template const_data_ptr<T>();
  op.mask = data_or_null<T>(mask);
  op.weight = packed.data();
  op.bias = data_or_null<T>(bias);
  op.output = output.template mutable_data_ptr<T>();
  op.channels_last = format == at::MemoryFormat::ChannelsLast;
  const int64_t tiles = (s.image_rows() + op.tile - 1) / op.tile;
  at::parallel_for(0, s.images * tiles, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(op.scratch());
    for (int64_t i = begin; i < end; ++i) {
      kernels.deform_conv2d_tile(op, i / tiles, i % tiles * op.tile, scratch.data());
    }
  });
  return output.to(input_map.scalar_type());
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
  at::Tensor output;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), "deform_conv2d", [&] {
    output = forward<scalar_t>(s, input, offset, weight, bias, mask);
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_conv2d", TORCH_FN(deform_conv2d_cpu));
  m.impl("deform_conv2d_backward", TORCH_FN(deform_conv2d_backward<Cpu>));
}

}  // namespace d2_deformable
