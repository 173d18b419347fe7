// Deformable convolution, backward: all gradients of one slice of channels.
#pragma once

#include "../cpu_kernels.h"
#include "gemm.h"
#include "sampling_points.h"
#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// The map of one image. read() copies channels of some pixels to a matrix that has one row per
// pixel. write() copies such rows back, for all pixels.
template <typename T>
struct ChannelMap {
  T* data;  // [C][pixels], or [pixels][C]
  bool channels_last;
  int64_t channels, pixels;

  template <typename To>
  void read(int64_t first_channel, int64_t channel_count, int64_t first_pixel, int64_t pixel_count,
            To* rows, int64_t row_stride) const {
    if (channels_last) {
      const T* from = data + first_pixel * channels + first_channel;
      for (int64_t p = 0; p < pixel_count; ++p) {
        __builtin_memcpy(rows + p * row_stride, from + p * channels, channel_count * sizeof(T));
      }
    } else {
      transpose<To>(data + first_channel * pixels + first_pixel, pixels, rows, row_stride,
                    channel_count, pixel_count);
    }
  }

  void write(int64_t first_channel, int64_t channel_count, const T* rows,
             int64_t row_stride) const {
    if (channels_last) {
      T* to = data + first_channel;
      for (int64_t p = 0; p < pixels; ++p) {
        __builtin_memcpy(to + p * channels, rows + p * row_stride, channel_count * sizeof(T));
      }
    } else {
      transpose<T>(rows, row_stride, data + first_channel * pixels, pixels, pixels, channel_count);
    }
  }
};

// The channels of a slice that are in one weight group. They are consecutive.
struct SliceGroup {
  int64_t group;                             // index of the weight group
  int64_t first_channel, channels;           // first_channel: in the input
  int64_t channel_in_slice;                  // first_channel, counted from the slice's first one
  int64_t weight_panels_at, grad_weight_at;  // where these begin in scratch memory

  // Index of its first channel in weight [O][C/groups][K], for output `o` of its group.
  int64_t weight_index(const DeformConv2dSizes& s, int64_t o) const {
    const int64_t output = group * (s.out_channels / s.groups) + o;
    return (output * (s.channels / s.groups) + first_channel % (s.channels / s.groups)) * s.taps();
  }
};

// A slice, whose channels are consecutive, and the layout of its scratch memory: <array>_at is
// where an array begins.
template <typename T>
struct Slice {
  static constexpr int kGroups = 64;  // one per channel at most; a slice has up to 64

  int64_t first_offset_group, offset_groups;
  int64_t offset_group_channels;  // of the slice, in each of its offset groups
  int64_t first_channel, channels;
  int64_t outputs, panels;              // of a weight group
  int64_t column_row, grad_weight_row;  // strides of matrix rows
  int groups = 0;
  SliceGroup group[kGroups];
  int64_t grad_weight_at, grad_output_at, map_at, grad_map_at, columns_at, grad_columns_at;
  int64_t scratch_size = 0;

  Slice(const DeformConv2dBackward<T>& op, int64_t index) {
    const DeformConv2dSizes& s = op.sizes;
    const ChannelSlices& slices = op.slices;
    const int64_t before = index % slices.per_offset_group * slices.width;
    const int64_t rest = slices.offset_group_channels - before;
    first_offset_group = index / slices.per_offset_group * slices.offset_groups;
    const int64_t left = s.offset_groups - first_offset_group;
    offset_groups = left < slices.offset_groups ? left : slices.offset_groups;
    first_channel = first_offset_group * slices.offset_group_channels + before;
    offset_group_channels = rest < slices.width ? rest : slices.width;
    channels = offset_groups * offset_group_channels;
    column_row = round_up(channels, kLanes<T>) + kLanes<T>;

    const int64_t weight_channels = s.channels / s.groups;
    outputs = s.out_channels / s.groups;
    panels = (outputs + kPanel<T> - 1) / kPanel<T>;
    grad_weight_row = round_up(outputs, kLanes<T>) + kLanes<T>;
    const int64_t last = first_channel + channels;
    for (int64_t c = first_channel, next; c < last; c = next) {
      const int64_t index_of_group = c / weight_channels;
      const int64_t end = (index_of_group + 1) * weight_channels;
      next = end < last ? end : last;
      SliceGroup& g = group[groups++];
      g = {index_of_group, c, next - c, c - first_channel, 0, 0};
      g.weight_panels_at = reserve(s.taps() * outputs * round_up(g.channels, kPanel<T>));
    }
    grad_weight_at = scratch_size;
    for (int g = 0; g < groups; ++g) {
      group[g].grad_weight_at = reserve(s.taps() * group[g].channels * grad_weight_row);
    }
    grad_output_at = reserve(groups * panels * op.tile * kPanel<T>);
    map_at = reserve((s.height * s.width + 1) * channels);
    grad_map_at = reserve((s.height * s.width + 1) * channels);
    columns_at = reserve(op.tile * column_row);
    grad_columns_at = reserve(op.tile * column_row);
  }

 private:
  // Extends the scratch memory by an array of `count` numbers and returns where it begins.
  int64_t reserve(int64_t count) {
    const int64_t begin = scratch_size;
    scratch_size += round_up(count, 64);
    return begin;
  }
};

// weight [O][C/groups][K] -> [K][panels][outputs][kPanel], panels of the slice's channels in one
// weight group. The last one is padded with zeros.
template <typename T>
void write_group_panels(const DeformConv2dSizes& s, const T* weight, const Slice<T>& slice,
                        const SliceGroup& group, T* panels) {
  const int64_t taps = s.taps();
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t panel = 0; panel < group.channels; panel += kPanel<T>) {
      const int64_t rest = group.channels - panel;
      const int64_t filled = rest < kPanel<T> ? rest : int64_t(kPanel<T>);
      for (int64_t o = 0; o < slice.outputs; ++o, panels += kPanel<T>) {
        const T* from = weight + group.weight_index(s, o) + panel * taps + tap;
        for (int64_t c = 0; c < filled; ++c) panels[c] = from[c * taps];
        for (int64_t c = filled; c < kPanel<T>; ++c) panels[c] = 0;
      }
    }
  }
}

// [K][channels][outputs] -> grad_weight [O][C/groups][K], for the slice's channels in one weight
// group.
template <typename T>
void write_group_gradient(const DeformConv2dSizes& s, const T* by_taps, const Slice<T>& slice,
                          const SliceGroup& group, T* grad_weight) {
  constexpr int lanes = kLanes<T>;
  const int64_t taps = s.taps(), size = group.channels * taps;
  const auto row = [&](int64_t k) {
    return by_taps + (k % taps * group.channels + k / taps) * slice.grad_weight_row;
  };
  for (int64_t o0 = 0; o0 < slice.outputs; o0 += lanes) {
    const int64_t rest = slice.outputs - o0, rows = rest < lanes ? rest : lanes;
    int64_t k = 0;
    for (; k + lanes <= size; k += lanes) {
      Vector<T> square[lanes];
      for (int i = 0; i < lanes; ++i) square[i] = load(row(k + i) + o0);
      transpose_square<T>(square);
      for (int64_t o = 0; o < rows; ++o) {
        store(grad_weight + group.weight_index(s, o0 + o) + k, square[o]);
      }
    }
    for (; k < size; ++k) {
      for (int64_t o = 0; o < rows; ++o) {
        grad_weight[group.weight_index(s, o0 + o) + k] = row(k)[o0 + o];
      }
    }
  }
}

// A vector of `width` numbers; a plain number if width is 1.
template <typename T, int width>
struct SubVectorOf {
  typedef T type __attribute__((vector_size(width * sizeof(T))));
};
template <typename T>
struct SubVectorOf<T, 1> {
  using type = T;
};
template <typename T, int width>
using SubVector = typename SubVectorOf<T, width>::type;

template <typename T, int width>
D2_INLINE T sum_lanes(SubVector<T, width> vector) {
  if constexpr (width == 1) {
    return vector;
  } else {
    SubVector<T, width / 2> half[2];
    __builtin_memcpy(half, &vector, sizeof(vector));
    return sum_lanes<T, width / 2>(half[0] + half[1]);
  }
}

// One sampling point: its pixels and their gradients, its column and the column's gradient.
template <typename T>
struct BackwardPoint {
  const T* pixel[4];
  T* grad_pixel[4];
  T weight[4];
  const T* grad_column;
  T* column;

  // `width` channels from channel `c` on: writes the column, adds to the gradients of the pixels,
  // and dots[k] += pixel k * gradient of the column.
  template <int width>
  D2_INLINE void sample_and_scatter(int64_t c, SubVector<T, width> (&dots)[4]) const {
    SubVector<T, width> grad, value[4], to[4];
    __builtin_memcpy(&grad, grad_column + c, sizeof(grad));
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      __builtin_memcpy(&value[k], pixel[k] + c, sizeof(grad));
      dots[k] += grad * value[k];
    }
    const SubVector<T, width> sampled =
        weight[0] * value[0] + weight[1] * value[1] + weight[2] * value[2] + weight[3] * value[3];
    __builtin_memcpy(column + c, &sampled, sizeof(grad));
    // One after another, because pixels may coincide.
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      __builtin_memcpy(&to[k], grad_pixel[k] + c, sizeof(grad));
      to[k] += weight[k] * grad;
      __builtin_memcpy(grad_pixel[k] + c, &to[k], sizeof(grad));
    }
  }

  // The last channels of an offset group, which do not fill a vector: by half a vector, a quarter,
  // ...
  template <int width>
  D2_INLINE void rest(int64_t c, int64_t channels, T* dots) const {
    if (channels & width) {
      SubVector<T, width> partial[4]{};
      sample_and_scatter<width>(c, partial);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) dots[k] += sum_lanes<T, width>(partial[k]);
      c += width;
    }
    if constexpr (width > 1) rest<width / 2>(c, channels, dots);
  }
};

// For each sampling point: computes its column from the pixels, adds the column's gradient to those
// of the pixels, which lie to_gradient numbers after the pixels, and sets
// dots[k] = pixel k . gradient of the column. Touches exactly the channels of the offset group,
// since those of the next group follow directly.
template <typename T>
void sample_and_scatter(const SamplingPoints<T>& points, int count, int64_t channels,
                        const T* grad_columns, T* columns, int64_t row, int64_t to_gradient,
                        T (*dots)[4]) {
  constexpr int lanes = kLanes<T>;
  const int64_t whole = channels / lanes * lanes;
  for (int p = 0; p < count; ++p, grad_columns += row, columns += row) {
    BackwardPoint<T> at;
    at.grad_column = grad_columns, at.column = columns;
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      at.pixel[k] = points.pixel[k][p];
      at.grad_pixel[k] = const_cast<T*>(at.pixel[k]) + to_gradient;
      at.weight[k] = points.weight[k][p];
    }
    T sums[4]{};
    if (whole) {
      Vector<T> d[4]{};
      for (int64_t c = 0; c < whole; c += lanes) at.template sample_and_scatter<lanes>(c, d);
      store_sums<T>(sums, d[0], d[1], d[2], d[3]);
    }
    if (whole < channels) at.template rest<lanes / 2>(whole, channels, sums);
    __builtin_memcpy(dots[p], sums, sizeof(sums));
  }
}

// One tap of output positions first .. first + count of an image. From the gradients of the columns
// it computes the columns, the slice's partial sums of grad_offset and grad_mask, and what to add
// to grad_map. `partial` says which partial sums of grad_offset and grad_mask are the slice's.
template <typename T>
void sample_tap_backward(const DeformConv2dBackward<T>& op, const Slice<T>& slice, int64_t partial,
                         int64_t image, int64_t tap, int64_t first, int64_t count, T* scratch) {
  const DeformConv2dSizes& s = op.sizes;
  const int64_t plane_size = s.image_rows(), pixels = s.height * s.width;
  const int64_t planes = s.images * s.offset_groups * s.taps();
  SamplingPoints<T> points;
  SamplingSlopes<T> slopes;
  T dots[kPositions][4];
  for (int64_t done = 0; done < count; done += kPositions) {
    const int64_t left = count - done;
    const Positions positions(s, first + done, left < kPositions ? left : kPositions);
    for (int64_t k = 0; k < slice.offset_groups; ++k) {
      const int64_t offset_group = slice.first_offset_group + k;
      const int64_t channel = k * slice.offset_group_channels;
      const int64_t plane = (image * s.offset_groups + offset_group) * s.taps() + tap;
      const T* pixel = scratch + slice.map_at + channel;
      const PixelMap<T> map{pixel, pixel + pixels * slice.channels, slice.channels};
      find_points(s, positions, tap, op.offset + 2 * plane * plane_size,
                  op.mask ? op.mask + plane * plane_size : nullptr, map, points, slopes);
      sample_and_scatter(points, positions.count, slice.offset_group_channels,
                         scratch + slice.grad_columns_at + done * slice.column_row + channel,
                         scratch + slice.columns_at + done * slice.column_row + channel,
                         slice.column_row, slice.grad_map_at - slice.map_at, dots);
      T* grad_y = op.grad_offset + 2 * (partial * planes + plane) * plane_size + positions.first;
      T* grad_x = grad_y + plane_size;
      const auto weighted = [&](const T(&by)[4][kPositions], int p) {
        return by[0][p] * dots[p][0] + by[1][p] * dots[p][1] + by[2][p] * dots[p][2] +
               by[3][p] * dots[p][3];
      };
      for (int p = 0; p < positions.count; ++p) {
        grad_y[p] = weighted(slopes.y, p);
        grad_x[p] = weighted(slopes.x, p);
      }
      if (!op.grad_mask) continue;
      T* grad_mask = op.grad_mask + (partial * planes + plane) * plane_size + positions.first;
      for (int p = 0; p < positions.count; ++p) grad_mask[p] = weighted(slopes.mask, p);
    }
  }
}

// One call computes all gradients of one slice of channels over one image range. Tile by tile
// and tap by tap it computes
// - the gradients of the columns, grad_output x weight;
// - from these its channels of grad_input and its partial sums of grad_offset and grad_mask;
// - columns x grad_output, its partial sum of grad_weight.
// It samples from copies of its own channels, and adds to such copies. No two calls write the same
// place, so there are no atomics, and each call adds in the order of positions.
template <typename T>
void deform_conv2d_backward_slice(const DeformConv2dBackward<T>& op, int64_t index,
                                  int64_t image_range, T* scratch) {
  const DeformConv2dSizes& s = op.sizes;
  const Slice<T> slice(op, index);
  const int64_t positions = s.image_rows(), pixels = s.height * s.width, taps = s.taps();
  const int64_t output_panel = op.tile * kPanel<T>, weight_panel = slice.outputs * kPanel<T>;
  const auto clear = [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) scratch[k] = 0;
  };
  const int64_t zero_pixel = slice.map_at + pixels * slice.channels;
  clear(zero_pixel, zero_pixel + slice.channels);
  // Includes grad_output, whose last panels need not be full.
  clear(slice.grad_weight_at, slice.map_at);
  for (int g = 0; g < slice.groups; ++g) {
    const SliceGroup& group = slice.group[g];
    write_group_panels(s, op.weight, slice, group, scratch + group.weight_panels_at);
  }
  T* grad_output = scratch + slice.grad_output_at;
  T* columns = scratch + slice.columns_at;
  T* grad_columns = scratch + slice.grad_columns_at;
  const int64_t last = s.images * (image_range + 1) / op.image_ranges;
  for (int64_t image = s.images * image_range / op.image_ranges; image < last; ++image) {
    const int64_t image_size = s.channels * pixels;
    const ChannelMap<const T> input{op.input + image * image_size, op.channels_last, s.channels,
                                    pixels};
    const ChannelMap<T> grad_input{op.grad_input + image * image_size, op.channels_last, s.channels,
                                   pixels};
    const ChannelMap<const T> outputs{op.grad_output + image * s.out_channels * positions,
                                      op.grad_output_channels_last, s.out_channels, positions};
    input.read(slice.first_channel, slice.channels, 0, pixels, scratch + slice.map_at,
               slice.channels);
    clear(slice.grad_map_at, slice.columns_at);

    for (int64_t first = 0; first < positions; first += op.tile) {
      const int64_t count = positions - first < op.tile ? positions - first : op.tile;
      for (int64_t k = 0; k < slice.groups * slice.panels; ++k) {
        const int64_t o = k % slice.panels * kPanel<T>, rest = slice.outputs - o;
        const int64_t group = slice.group[k / slice.panels].group;
        outputs.read(group * slice.outputs + o, rest < kPanel<T> ? rest : int64_t(kPanel<T>), first,
                     count, grad_output + k * output_panel, kPanel<T>);
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int g = 0; g < slice.groups; ++g) {
          const SliceGroup& group = slice.group[g];
          const GemmOperand<T> a{grad_output + g * slice.panels * output_panel, kPanel<T>, 1,
                                 kPanel<T>, output_panel};
          const T* weight = scratch + group.weight_panels_at +
                            tap * slice.outputs * round_up(group.channels, kPanel<T>);
          gemm(count, group.channels, slice.outputs, a, weight, weight_panel,
               grad_columns + group.channel_in_slice, slice.column_row, false);
        }
        sample_tap_backward(op, slice, index % op.slices.per_offset_group, image, tap, first, count,
                            scratch);
        for (int g = 0; g < slice.groups; ++g) {
          const SliceGroup& group = slice.group[g];
          const GemmOperand<T> a{columns + group.channel_in_slice, 1, slice.column_row, count, 0};
          T* grad_weight =
              scratch + group.grad_weight_at + tap * group.channels * slice.grad_weight_row;
          gemm(group.channels, slice.outputs, count, a,
               grad_output + g * slice.panels * output_panel, output_panel, grad_weight,
               slice.grad_weight_row, true);
        }
      }
    }
    grad_input.write(slice.first_channel, slice.channels, scratch + slice.grad_map_at,
                     slice.channels);
  }
  T* grad_weight = op.grad_weight + image_range * s.out_channels * (s.channels / s.groups) * taps;
  for (int g = 0; g < slice.groups; ++g) {
    const SliceGroup& group = slice.group[g];
    write_group_gradient(s, scratch + group.grad_weight_at, slice, group, grad_weight);
  }
}

// Size of the scratch memory that such a call needs, in numbers.
template <typename T>
int64_t deform_conv2d_backward_scratch(const DeformConv2dBackward<T>& op, int64_t slice) {
  return Slice<T>(op, slice).scratch_size;
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
