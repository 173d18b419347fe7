// Deformable convolution, forward: samples columns tile by tile and multiplies them by the weight.
#pragma once

#include "../cpu_kernels.h"
#include "deform_conv2d_grouped_cpu_kernel.h"
#include "gemm.h"
#include "sampling_points.h"
#include "transpose.h"

namespace d2_deformable {
namespace D2_CPU_TARGET {

// Number of panels of the weight, and the size of each in numbers.
template <typename T>
int64_t weight_panel_count(const DeformConv2dSizes& s) {
  if (is_grouped<T>(s)) return s.offset_groups * GroupedBundles(s, kLanes<T>).count;
  return s.groups * panels_per_group(s, kPanel<T>);
}
template <typename T>
int64_t weight_panel_size(const DeformConv2dSizes& s) {
  return s.taps() * (s.channels / s.groups) * (is_grouped<T>(s) ? kLanes<T> : kPanel<T>);
}

// weight [O][C/groups][K] -> [groups][panels][K][C/groups][kPanel], panels of a group's outputs.
// The last one is padded with zeros. One call writes one panel.
template <typename T>
void write_weight_panel(const DeformConv2dSizes& s, const T* weight, int64_t panel, T* panels) {
  if (is_grouped<T>(s)) return write_grouped_weight_panel(s, weight, panel, panels);
  constexpr int lanes = kLanes<T>;
  const int64_t outputs = s.out_channels / s.groups, channels = s.channels / s.groups;
  const int64_t taps = s.taps(), depth = channels * taps, count = panels_per_group(s, kPanel<T>);
  const int64_t first = panel % count * kPanel<T>;
  const T* from = weight + (panel / count * outputs + first) * depth;
  T* to = panels + panel * depth * kPanel<T>;
  for (int64_t half = 0; half < kPanel<T>; half += lanes) {
    const int64_t rows = outputs - first - half;
    for (int64_t k = 0; k < depth; k += lanes) {
      const int64_t width = depth - k < lanes ? depth - k : lanes;
      Vector<T> square[lanes];
      if (rows >= lanes && width == lanes) {
#pragma GCC unroll 16
        for (int o = 0; o < lanes; ++o) square[o] = load(from + (half + o) * depth + k);
      } else {
        for (int o = 0; o < lanes; ++o) {
          square[o] = Vector<T>{};
          for (int64_t j = 0; o < rows && j < width; ++j) {
            square[o][j] = from[(half + o) * depth + k + j];
          }
        }
      }
      transpose_square<T>(square);
      int64_t channel = k / taps, tap = k % taps;
      for (int64_t j = 0; j < width; ++j) {
        store(to + (tap * channels + channel) * kPanel<T> + half, square[j]);
        if (++tap == taps) tap = 0, ++channel;
      }
    }
  }
}

// Samples `channels` channels from `first` on, at position p of `points`.
template <typename T>
D2_INLINE void sample_pixel(const SamplingPoints<T>& points, int p, int64_t first, int64_t channels,
                            T* columns) {
  constexpr int lanes = kLanes<T>;
  const T *p0 = points.pixel[0][p] + first, *p1 = points.pixel[1][p] + first;
  const T *p2 = points.pixel[2][p] + first, *p3 = points.pixel[3][p] + first;
  const T w0 = points.weight[0][p], w1 = points.weight[1][p];
  const T w2 = points.weight[2][p], w3 = points.weight[3][p];
  const auto sample = [&](int64_t c) {
    store(columns + c,
          w0 * load(p0 + c) + w1 * load(p1 + c) + w2 * load(p2 + c) + w3 * load(p3 + c));
  };
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) sample(c);
  if (c == channels) return;
  if (channels > lanes) {
    sample(channels - lanes);  // repeats some of them
  } else {
    for (; c < channels; ++c) columns[c] = w0 * p0[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c];
  }
}

// Samples taps first_tap .. first_tap + taps of output positions first .. first + count of an image
// to columns [count][taps][C], whose rows are `row` numbers apart.
template <typename T>
void sample_columns(const DeformConv2dForward<T>& op, int64_t image, int64_t first, int64_t count,
                    int64_t first_tap, int64_t taps, T* columns, int64_t row) {
  const DeformConv2dSizes& s = op.sizes;
  const int64_t offset_group_channels = s.channels / s.offset_groups;
  const int64_t plane_size = s.image_rows();
  const PixelMap<T> map{op.input + image * s.height * s.width * s.channels, op.zeros, s.channels};
  SamplingPoints<T> points;
  for (int64_t done = 0; done < count; done += kPositions) {
    const int64_t left = count - done;
    const Positions positions(s, first + done, left < kPositions ? left : kPositions);
    for (int64_t tap = first_tap; tap < first_tap + taps; ++tap) {
      for (int64_t offset_group = 0; offset_group < s.offset_groups; ++offset_group) {
        const int64_t plane = (image * s.offset_groups + offset_group) * s.taps() + tap;
        find_points(s, positions, tap, op.offset + 2 * plane * plane_size,
                    op.mask ? op.mask + plane * plane_size : nullptr, map, points);
        const int64_t channel = offset_group * offset_group_channels;
        T* to = columns + done * row + (tap - first_tap) * s.channels + channel;
        for (int p = 0; p < positions.count; ++p, to += row) {
          sample_pixel(points, p, channel, offset_group_channels, to);
        }
      }
    }
  }
}

// Computes output positions first .. first + count of an image in all channels: result [count][O],
// whose rows are result_row numbers apart. Samples op.taps_at_once taps at a time into columns,
// which stay in the L2 cache while they are multiplied by the weight.
template <typename T>
void multiply_columns(const DeformConv2dForward<T>& op, int64_t image, int64_t first, int64_t count,
                      T* columns, T* result, int64_t result_row) {
  const DeformConv2dSizes& s = op.sizes;
  const int64_t taps = s.taps(), column_row = op.column_row();
  const int64_t channels = s.channels / s.groups, outputs = s.out_channels / s.groups;
  const int64_t panel_size = taps * channels * kPanel<T>, panels = panels_per_group(s, kPanel<T>);
  // Small groups share cache lines of the columns, so all groups process a few rows before the next
  // rows.
  const bool small = s.groups > 1 && outputs <= kPanel<T> && taps * channels <= kDepth<T>;
  const int64_t rows = small ? int64_t(kMicroRows) : count;
  if (op.bias) {
    for (int64_t p = 0; p < count; ++p) {
      __builtin_memcpy(result + p * result_row, op.bias, s.out_channels * sizeof(T));
    }
  }
  for (int64_t tap = 0; tap < taps; tap += op.taps_at_once) {
    const int64_t sampled = taps - tap < op.taps_at_once ? taps - tap : op.taps_at_once;
    sample_columns(op, image, first, count, tap, sampled, columns, column_row);
    const int64_t run = s.groups == 1 ? sampled * channels : channels;
    for (int64_t p = 0; p < count; p += rows) {
      for (int64_t group = 0; group < s.groups; ++group) {
        const GemmOperand<T> a{columns + p * column_row + group * channels, column_row, 1, run,
                               s.channels};
        gemm(count - p < rows ? count - p : rows, outputs, sampled * channels, a,
             op.weight + group * panels * panel_size + tap * channels * kPanel<T>, panel_size,
             result + p * result_row + group * outputs, result_row, op.bias || tap > 0);
      }
    }
  }
}

// One call computes the outputs of one tile: op.tile positions of an image (or the rest of it) from
// `first` on, in all channels. No two calls write the same place, and every output is summed in the
// same order, whatever the tiles are.
template <typename T>
void deform_conv2d_tile(const DeformConv2dForward<T>& op, int64_t image, int64_t first,
                        T* scratch) {
  const DeformConv2dSizes& s = op.sizes;
  const int64_t positions = s.image_rows();
  const int64_t count = positions - first < op.tile ? positions - first : op.tile;
  // [count][O]; in the output itself if that is channels-last.
  T* result = op.channels_last ? op.output + (image * positions + first) * s.out_channels
                               : scratch + op.tile * op.column_row();
  const int64_t result_row = op.channels_last ? s.out_channels : op.result_row();
  if (is_grouped<T>(s)) {
    deform_conv2d_grouped(op, image, first, count, result, result_row);
  } else {
    multiply_columns(op, image, first, count, scratch, result, result_row);
  }
  if (op.channels_last) return;
  T* output = op.output + image * s.out_channels * positions + first;
  for (int64_t o = 0; o < s.out_channels; o += kPanel<T>) {
    const int64_t rest = s.out_channels - o;
    transpose(result + o, result_row, output + o * positions, positions, count,
              rest < kPanel<T> ? rest : int64_t(kPanel<T>));
  }
}

}  // namespace D2_CPU_TARGET
}  // namespace d2_deformable
