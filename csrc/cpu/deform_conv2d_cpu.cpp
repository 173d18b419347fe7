// deform_conv2d on the CPU: converts layouts, allocates, and shares the work among threads.
//
// The columns of a whole map, K times the size of the input, are never in memory at once. Besides
// its results, a call allocates:
// - forward: the weight in panels, a channels-last copy of the input unless it has that layout
//   already, and per thread about kColumnBytes and one tile of the result;
// - backward, per thread: two copies of a slice of one image (at most kSliceChannels channels, not
//   padded) and two of the slice's weights; for kTile positions, two copies of the columns of one
//   tap, and grad_output. Weights, columns and grad_output are padded to whole vectors;
// - backward, partial sums: grad_offset and grad_mask once per slice of an offset group, and
//   grad_weight at most kBackwardThreads times.
#include "../deform_conv2d_sizes.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "layout_cpu.h"

namespace d2_deformable {
namespace {

// Size of the columns in memory at once; with the rows of the result they fit into an L2 cache.
constexpr int64_t kColumnBytes = 460 << 10;
// Output positions; a multiple of kMicroRows (kernels/gemm.h) and of the lanes of a vector.
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

  const int64_t panels = kernels.weight_panel_count(s), panel_size = kernels.weight_panel_size(s);
  const Scratch<T> weight_panels(panels * panel_size);
  at::parallel_for(0, panels, 1 + 32768 / panel_size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.write_weight_panel(s, weight.template const_data_ptr<T>(), i, weight_panels.data());
    }
  });

  DeformConv2dForward<T> op;
  op.sizes = s;
  // All taps of a tile at once, else all taps of half a tile, else a few taps at a time.
  const int64_t pixel = s.channels * sizeof(T), column = s.taps() * pixel;
  op.tile = std::clamp<int64_t>(kColumnBytes / pixel, 1, kTile);
  if (kTile * column > kColumnBytes && kTile / 2 * column <= kColumnBytes) op.tile = kTile / 2;
  const int64_t most = std::clamp<int64_t>(kColumnBytes / (op.tile * pixel), 1, s.taps());
  const int64_t passes = (s.taps() + most - 1) / most;
  op.taps_at_once = (s.taps() + passes - 1) / passes;
  op.input = input.template const_data_ptr<T>();
  op.zeros = zeros.template const_data_ptr<T>();
  op.offset = offset.template const_data_ptr<T>();
  op.mask = data_or_null<T>(mask);
  op.weight = weight_panels.data();
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
      deform_conv2d_sizes(input, offset, weight, bias, mask, stride, padding, dilation, border);
  at::Tensor output;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), "deform_conv2d", [&] {
    output = forward<scalar_t>(s, input, offset, weight, bias, mask);
  });
  return output;
}

// Channels of a slice: many, because positions are sampled once per slice, but few where the map
// has so few channels that threads would be left without a slice.
constexpr int64_t kSliceChannels = 64, kNarrowSlice = 32, kFewChannels = 128;
// Slices times image ranges: enough for this many threads, if there are enough images.
constexpr int64_t kBackwardThreads = 8;

ChannelSlices channel_slices(const DeformConv2dSizes& s) {
  const int64_t channels = s.channels / s.offset_groups;
  const auto ceil_div = [](int64_t count, int64_t by) { return (count + by - 1) / by; };
  const int64_t most = s.channels * s.images <= kFewChannels ? kNarrowSlice : kSliceChannels;
  ChannelSlices slices;
  slices.offset_group_channels = channels;
  slices.per_offset_group = ceil_div(channels, most);
  slices.offset_groups = std::clamp<int64_t>(most / channels, 1, s.offset_groups);
  slices.width = std::min(channels, ceil_div(ceil_div(channels, slices.per_offset_group), 16) * 16);
  slices.per_offset_group = ceil_div(channels, slices.width);
  slices.count = ceil_div(s.offset_groups, slices.offset_groups) * slices.per_offset_group;
  return slices;
}

// Sums [partials][...] over the first dimension, always in the same order.
template <typename T>
at::Tensor sum_partials(const at::Tensor& partials) {
  if (partials.size(0) == 1) return partials.squeeze(0);
  const at::Tensor total = at::empty(partials.sizes().slice(1), partials.options());
  const T* from = partials.const_data_ptr<T>();
  T* to = total.mutable_data_ptr<T>();
  const int64_t count = total.numel();
  at::parallel_for(0, count, 32768, [&](int64_t begin, int64_t end) {
    std::copy(from + begin, from + end, to + begin);
    for (int64_t partial = 1; partial < partials.size(0); ++partial) {
      for (int64_t i = begin; i < end; ++i) to[i] += from[partial * count + i];
    }
  });
  return total;
}

// A map as the kernels of backward read it, (N, C, H, W) or channels-last.
at::Tensor dense(const at::Tensor& map, at::ScalarType type) {
  return map.to(type).contiguous(memory_format(map));
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <typename T>
Gradients backward(const DeformConv2dSizes& s, const at::Tensor& grad_output_map,
                   const at::Tensor& input_map, const at::Tensor& offset_map,
                   const at::Tensor& weight_map, const std::optional<at::Tensor>& mask_map) {
  const auto& kernels = cpu_kernels<T>();
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto input = dense(input_map, type), grad_output = dense(grad_output_map, type);
  const auto offset = to_coordinates(offset_map, type), mask = to_coordinates(mask_map, type);
  const auto weight = to_coordinates(weight_map, type);

  DeformConv2dBackward<T> op;
  op.sizes = s;
  op.slices = channel_slices(s);
  op.image_ranges =
      std::clamp<int64_t>(kBackwardThreads / op.slices.count, 1, std::max<int64_t>(s.images, 1));
  op.tile = kTile;
  const auto partials = [&](int64_t count, const at::Tensor& tensor) {
    std::vector<int64_t> sizes = tensor.sizes().vec();
    sizes.insert(sizes.begin(), count);
    return at::empty(sizes, weight.options());
  };
  const auto grad_input = at::empty_like(input);
  const auto grad_offset = partials(op.slices.per_offset_group, offset);
  const auto grad_mask = mask.defined() ? partials(op.slices.per_offset_group, mask) : at::Tensor();
  const auto grad_weight = partials(op.image_ranges, weight);
  op.input = input.template const_data_ptr<T>();
  op.channels_last = memory_format(input) == at::MemoryFormat::ChannelsLast;
  op.offset = offset.template const_data_ptr<T>();
  op.mask = data_or_null<T>(mask);
  op.weight = weight.template const_data_ptr<T>();
  op.grad_output = grad_output.template const_data_ptr<T>();
  op.grad_output_channels_last = memory_format(grad_output) == at::MemoryFormat::ChannelsLast;
  op.grad_input = grad_input.template mutable_data_ptr<T>();
  op.grad_offset = grad_offset.template mutable_data_ptr<T>();
  op.grad_mask = mask.defined() ? grad_mask.template mutable_data_ptr<T>() : nullptr;
  op.grad_weight = grad_weight.template mutable_data_ptr<T>();

  int64_t size = 0;
  for (int64_t i = 0; i < op.slices.count; ++i) {
    size = std::max(size, kernels.deform_conv2d_backward_scratch(op, i));
  }
  at::parallel_for(0, op.slices.count * op.image_ranges, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(size);
    for (int64_t i = begin; i < end; ++i) {
      kernels.deform_conv2d_backward_slice(op, i / op.image_ranges, i % op.image_ranges,
                                           scratch.data());
    }
  });
  return {grad_input.to(input_map.scalar_type()),
          sum_partials<T>(grad_offset).to(offset_map.scalar_type()),
          sum_partials<T>(grad_weight).to(weight_map.scalar_type()),
          mask_map ? sum_partials<T>(grad_mask).to(mask_map->scalar_type())
                   : at::empty({0}, input_map.options())};
}

Gradients deform_conv2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& offset, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation,
                                     std::string_view border) {
  constexpr const char* name = "deform_conv2d_backward";
  const auto s = deform_conv2d_backward_sizes(grad_output, input, offset, weight, mask, stride,
                                              padding, dilation, border);
  Gradients gradients;
  AT_DISPATCH_FLOATING_TYPES(at::toOpMathType(input.scalar_type()), name, [&] {
    gradients = backward<scalar_t>(s, grad_output, input, offset, weight, mask);
  });
  return gradients;
}

}  // namespace

TORCH_LIBRARY_IMPL(d2_deformable, CPU, m) {
  m.impl("deform_conv2d", TORCH_FN(deform_conv2d_cpu));
  m.impl("deform_conv2d_backward", TORCH_FN(deform_conv2d_backward_cpu));
}

}  // namespace d2_deformable
