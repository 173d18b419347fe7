// deform_conv2d on the CPU: what is converted and allocated, and how threads share the work.
//
// Columns as a whole, K times the input, are never in memory. Beside its results a call allocates
// - forward: the packed weight, a channels-last copy of the input unless it is so already, and for
//   each thread about kChunkBytes and a tile of the result;
// - backward: for each thread twice a slice of one image (at most kSliceChannels channels, without
//   padding), twice the slice's weights and, for kTile positions, twice a column of one tap and
//   grad_output, the last three filled up to whole vectors; and partial sums: grad_offset and
//   grad_mask once per slice of an offset group, grad_weight at most kItems times.
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

  const int64_t parts = kernels.weight_parts(s), part = kernels.weight_part(s);
  const Scratch<T> packed(parts * part);
  at::parallel_for(0, parts, 1 + 32768 / part, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.pack_weight(s, weight.template const_data_ptr<T>(), i, packed.data());
    }
  });

  DeformConv2dForward<T> op;
  op.sizes = s;
  // All taps of a tile or of half a tile at once, or else a few at a time.
  const int64_t pixel = s.channels * sizeof(T), column = s.taps() * pixel;
  op.tile = std::clamp<int64_t>(kChunkBytes / pixel, 1, kTile);
  if (kTile * column > kChunkBytes && kTile / 2 * column <= kChunkBytes) op.tile = kTile / 2;
  const int64_t most = std::clamp<int64_t>(kChunkBytes / (op.tile * pixel), 1, s.taps());
  const int64_t chunks = (s.taps() + most - 1) / most;
  op.chunk = (s.taps() + chunks - 1) / chunks;
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

// Channels of a slice, which owns its gradients: many, since positions are sampled once per slice,
// unless too few slices would be left for threads to share.
constexpr int64_t kSliceChannels = 64, kNarrowSlice = 32, kFewChannels = 128;
// Slices times parts of the images: work for so many threads, if there are so many images.
constexpr int64_t kItems = 8;

ChannelSlices channel_slices(const DeformConv2dSizes& s) {
  const int64_t channels = s.channels / s.offset_groups;
  const auto up = [](int64_t count, int64_t unit) { return (count + unit - 1) / unit; };
  const int64_t most = s.channels * s.images <= kFewChannels ? kNarrowSlice : kSliceChannels;
  ChannelSlices slices;
  slices.group_channels = channels;
  slices.per_group = up(channels, most);
  slices.groups = std::clamp<int64_t>(most / channels, 1, s.offset_groups);
  slices.width = std::min(channels, up(up(channels, slices.per_group), 16) * 16);
  slices.per_group = up(channels, slices.width);
  slices.count = up(s.offset_groups, slices.groups) * slices.per_group;
  return slices;
}

// Sums [parts][...] over the parts, always in the same order.
template <typename T>
at::Tensor add_parts(const at::Tensor& parts) {
  if (parts.size(0) == 1) return parts.squeeze(0);
  const at::Tensor total = at::empty(parts.sizes().slice(1), parts.options());
  const T* from = parts.const_data_ptr<T>();
  T* to = total.mutable_data_ptr<T>();
  const int64_t count = total.numel();
  at::parallel_for(0, count, 32768, [&](int64_t begin, int64_t end) {
    std::copy(from + begin, from + end, to + begin);
    for (int64_t part = 1; part < parts.size(0); ++part) {
      for (int64_t i = begin; i < end; ++i) to[i] += from[part * count + i];
    }
  });
  return total;
}

// A map as the kernels read it, (N, C, H, W) or channels-last.
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
  op.image_parts = std::clamp<int64_t>(kItems / op.slices.count, 1, std::max<int64_t>(s.images, 1));
  op.tile = kTile;
  const auto parts = [&](int64_t count, const at::Tensor& tensor) {
    std::vector<int64_t> sizes = tensor.sizes().vec();
    sizes.insert(sizes.begin(), count);
    return at::empty(sizes, weight.options());
  };
  const auto grad_input = at::empty_like(input);
  const auto grad_offset = parts(op.slices.per_group, offset);
  const auto grad_mask = mask.defined() ? parts(op.slices.per_group, mask) : at::Tensor();
  const auto grad_weight = parts(op.image_parts, weight);
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
  at::parallel_for(0, op.slices.count * op.image_parts, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(size);
    for (int64_t i = begin; i < end; ++i) {
      kernels.deform_conv2d_backward_slice(op, i / op.image_parts, i % op.image_parts,
                                           scratch.data());
    }
  });
  return {grad_input.to(input_map.scalar_type()),
          add_parts<T>(grad_offset).to(offset_map.scalar_type()),
          add_parts<T>(grad_weight).to(weight_map.scalar_type()),
          mask_map ? add_parts<T>(grad_mask).to(mask_map->scalar_type())
                   : at::empty({0}, input_map.options())};
}

Gradients deform_conv2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& offset, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& mask, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation,
                                     std::string_view border) {
  constexpr const char* name = "deform_conv2d_backward";
  const auto s =
      deform_conv2d_sizes(input, offset, weight, mask, stride, padding, dilation, border);
  check_like(name, "grad_output", grad_output, input);
  check_shape(name, "grad_output", grad_output,
              {s.images, s.out_channels, s.out_height, s.out_width});
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
